"""The ladder that `fm.preflight` climbs: trainings of some seconds, each an ordinary run in a place of its own."""
