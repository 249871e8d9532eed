"""The Ray launcher: stages as jobs of a Ray cluster, asked for over its Jobs REST API. Needs no Ray."""
