"""Memory, time and cost of a training, from its configuration alone."""
