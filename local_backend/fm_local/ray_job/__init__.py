"""What runs on a Ray cluster: a job's entry point, and its workers."""
