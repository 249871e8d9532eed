"""The reference server: a backend behind HTTP, for a machine or a team."""
