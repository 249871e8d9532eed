-- The tables as the first step of the schema made them, and what a store of that age may hold.
CREATE TABLE agents (
	id VARCHAR NOT NULL,
	host VARCHAR NOT NULL,
	pid INTEGER NOT NULL,
	version VARCHAR NOT NULL,
	heartbeat FLOAT NOT NULL,
	drain INTEGER NOT NULL,
	PRIMARY KEY (id)
);
CREATE TABLE aliases (
	team VARCHAR NOT NULL,
	name VARCHAR NOT NULL,
	alias VARCHAR NOT NULL,
	version INTEGER NOT NULL,
	PRIMARY KEY (team, name, alias)
);
CREATE TABLE events (
	run_id VARCHAR NOT NULL,
	seq INTEGER NOT NULL,
	attempt INTEGER,
	line INTEGER,
	record TEXT NOT NULL,
	PRIMARY KEY (run_id, seq),
	UNIQUE (run_id, attempt, line)
);
CREATE TABLE logs (
	run_id VARCHAR NOT NULL,
	seq INTEGER NOT NULL,
	text TEXT NOT NULL,
	PRIMARY KEY (run_id, seq)
);
CREATE TABLE metrics (
	run_id VARCHAR NOT NULL,
	key VARCHAR NOT NULL,
	step INTEGER NOT NULL,
	value FLOAT NOT NULL,
	time FLOAT NOT NULL,
	PRIMARY KEY (run_id, key, step)
);
CREATE INDEX metrics_by_step ON metrics (run_id, step);
CREATE TABLE migrations (
	name VARCHAR NOT NULL,
	PRIMARY KEY (name)
);
CREATE TABLE model_names (
	team VARCHAR NOT NULL,
	name VARCHAR NOT NULL,
	last_version INTEGER NOT NULL,
	PRIMARY KEY (team, name)
);
CREATE TABLE models (
	team VARCHAR NOT NULL,
	name VARCHAR NOT NULL,
	version INTEGER NOT NULL,
	run_id VARCHAR,
	created_at FLOAT NOT NULL,
	record TEXT NOT NULL,
	PRIMARY KEY (team, name, version),
	UNIQUE (run_id)
);
CREATE TABLE runs (
	id VARCHAR NOT NULL,
	name VARCHAR NOT NULL,
	team VARCHAR NOT NULL,
	owner VARCHAR NOT NULL,
	status VARCHAR NOT NULL,
	experiment_id VARCHAR NOT NULL,
	created_at FLOAT NOT NULL,
	idempotency_key VARCHAR NOT NULL,
	record TEXT NOT NULL,
	last_seq INTEGER NOT NULL,
	log_bytes INTEGER NOT NULL,
	not_before FLOAT NOT NULL,
	lease_agent VARCHAR,
	lease_host VARCHAR,
	lease_epoch INTEGER NOT NULL,
	lease_expires FLOAT,
	work TEXT,
	PRIMARY KEY (id),
	UNIQUE (team, idempotency_key)
);
CREATE INDEX ix_runs_name ON runs (name);
CREATE INDEX runs_by_status ON runs (status, not_before);
CREATE INDEX runs_by_time ON runs (team, created_at, id);
INSERT INTO migrations (name) VALUES ('0001-first-schema');
