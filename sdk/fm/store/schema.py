"""The tables of the store.

A run's whole record is one JSON column; beside it stand only the columns that are searched, sorted or fenced by.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, index=True),
    Column("team", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("status", String, nullable=False),
    Column("experiment_id", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("idempotency_key", String, nullable=False),
    Column("record", Text, nullable=False),
    Column("last_seq", Integer, nullable=False, default=0),
    Column("log_bytes", Integer, nullable=False, default=0),
    Column("not_before", Float, nullable=False, default=0.0),
    # The lease: who may write on behalf of the run, and until when. `lease_epoch` fences late writers.
    Column("lease_agent", String),
    Column("lease_host", String),
    Column("lease_epoch", Integer, nullable=False, default=0),
    Column("lease_expires", Float),
    # What the lease holder must know to go on after a restart (JSON): the stage, its handle, how far it has read.
    Column("work", Text),
    Column("priority", Integer, nullable=False, server_default="0"),
    # What the run's folder holds, as its agent last measured it.
    Column("disk_bytes", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("team", "idempotency_key"),
    # The order in which they are listed: all, those of one status, of one owner, of one experiment.
    Index("runs_by_time", "team", "created_at", "id"),
    Index("runs_by_status_and_time", "team", "status", "created_at", "id"),
    Index("runs_by_owner", "team", "owner", "created_at", "id"),
    Index("runs_by_experiment", "team", "experiment_id", "created_at", "id"),
)
# The order in which a team's waiting runs are claimed.
Index("runs_by_turn", runs.c.status, runs.c.team, runs.c.priority.desc(), runs.c.created_at, runs.c.id)

events = Table(
    "events",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer),
    Column("line", Integer),
    Column("record", Text, nullable=False),
    UniqueConstraint("run_id", "attempt", "line"),
)

metrics = Table(
    "metrics",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("value", Float, nullable=False),
    Column("time", Float, nullable=False),
    Index("metrics_by_step", "run_id", "step"),
)

logs = Table(
    "logs",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("team", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("run_id", String, unique=True),
    Column("created_at", Float, nullable=False),
    Column("record", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False, server_default="0"),
)

model_names = Table(
    "model_names",
    metadata,
    Column("team", String, primary_key=True),
    Column("name", String, primary_key=True),
    # Counts on when a version is removed: a number never means two things.
    Column("last_version", Integer, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("team", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("alias", String, primary_key=True),
    Column("version", Integer, nullable=False),
)

agents = Table(
    "agents",
    metadata,
    Column("id", String, primary_key=True),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", String, nullable=False),
    Column("heartbeat", Float, nullable=False),
    Column("drain", Integer, nullable=False, default=0),
)

datasets = Table(
    "datasets",
    metadata,
    Column("team", String, primary_key=True),
    Column("digest", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("rows", BigInteger),
    Column("sensitive", Integer, nullable=False, server_default="0"),
    Column("created_at", Float, nullable=False),
)

teams = Table(
    "teams",
    metadata,
    Column("name", String, primary_key=True),
    Column("created_at", Float, nullable=False),
    # None: no limit.
    Column("max_running", Integer),
    Column("max_disk", BigInteger),
)

turns = Table(
    "turns",
    metadata,
    Column("team", String, primary_key=True),
    Column("claimed_at", Float, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("team", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("created_at", Float, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String, primary_key=True),
    # SHA-256 of the token, which itself is kept nowhere. It has 256 random bits, so no slow hash is needed.
    Column("digest", String, nullable=False),
    Column("team", String, nullable=False),
    Column("user", String, nullable=False),
    Column("scopes", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("last_used_at", Float),
    Column("last_refused_at", Float),
)

grants = Table(
    "grants",
    metadata,
    # `to_team` may read `object` of `team`: a model by its name, or a data set by its digest.
    Column("to_team", String, primary_key=True),
    Column("kind", String, primary_key=True),
    Column("object", String, primary_key=True),
    Column("team", String, primary_key=True),
    Column("created_at", Float, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    # JSON, with the digest of the entry before; nothing of an entry stands outside of it.
    Column("record", Text, nullable=False),
    Column("digest", String, nullable=False),
)

audit_head = Table(
    "audit_head",
    metadata,
    # One row: the last entry. Who adds one locks it.
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("digest", String, nullable=False),
)
NO_ENTRY = "0" * 64
"""What the first entry of the audit log holds as the digest of the one before."""

migrations = Table(
    "migrations",
    metadata,
    Column("name", String, primary_key=True),
)
