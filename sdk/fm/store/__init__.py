"""The run store: the single truth about runs, events, metrics, logs and models, in SQLite or PostgreSQL."""
