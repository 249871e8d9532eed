"""The audit log: who did what, on which object, when and from where, in a chain of digests.

Each entry holds the SHA-256 of the one before, so that one that is changed, removed or put elsewhere breaks the chain
from there on. Who can write the database could make a whole new chain; a digest that was noted elsewhere shows that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from fm.errors import Damaged
from fm.store.schema import NO_ENTRY, audit, audit_head
from fm.types import Principal

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry. `action` is ``noun.verb``, `object` what it was done to."""

    seq: int
    time: datetime
    user: str
    team: str
    token: str
    """The id of the token that was shown; empty for who opened the store without one."""
    address: str
    action: str
    object: str
    detail: dict[str, Any]
    previous: str
    """Digest of the entry before."""
    digest: str


@dataclass(frozen=True, slots=True)
class AuditHead:
    """How many entries there are, and the digest of the last one."""

    entries: int
    digest: str


def record(
    connection: Connection, who: Principal, now: datetime, action: str, object: str, **detail: Any
) -> None:
    """Adds an entry, in the transaction of what it records. It is that transaction's last statement: until the end of
    it nobody else adds one."""
    head = connection.execute(select(audit_head).with_for_update()).one()
    entry = {
        "seq": head.seq + 1,
        "time": now.isoformat(),
        "user": who.user,
        "team": who.team,
        "token": who.token_id,
        "address": who.address,
        "action": action,
        "object": object,
        "detail": detail,
        "previous": head.digest,
    }
    text = json.dumps(entry, sort_keys=True)
    digest = _digest(text)
    connection.execute(insert(audit).values(seq=head.seq + 1, record=text, digest=digest))
    connection.execute(update(audit_head).values(seq=head.seq + 1, digest=digest))


def read(connection: Connection) -> Iterator[AuditEntry]:
    """All entries, newest first."""
    before = connection.execute(select(audit_head.c.seq)).scalar_one() + 1
    while page := connection.execute(
        select(audit).where(audit.c.seq < before).order_by(audit.c.seq.desc()).limit(_PAGE)
    ).all():
        for row in page:
            entry = json.loads(row.record)
            yield AuditEntry(**(entry | {"time": datetime.fromisoformat(entry["time"]), "digest": row.digest}))
        before = page[-1].seq


def verify(connection: Connection, noted: str | None = None) -> AuditHead:
    """Checks the whole chain, and that it has an entry with the digest `noted`, if one is given.

    Raises:
        Damaged: an entry was changed, removed or moved; says which is the first.
    """
    previous, seq, seen = NO_ENTRY, 0, noted in (None, NO_ENTRY)
    while page := connection.execute(
        select(audit).where(audit.c.seq > seq).order_by(audit.c.seq).limit(_PAGE)
    ).all():
        for row in page:
            _check(row.seq, row.record, row.digest, seq + 1, previous)
            previous, seq = row.digest, row.seq
            seen = seen or row.digest == noted
    head = connection.execute(select(audit_head)).all()
    if [(row.seq, row.digest) for row in head] != [(seq, previous)]:
        raise _damaged(f"entries after {seq:,} are missing")
    if not seen:
        raise _damaged(f"none of its {seq:,} entries has the digest {noted}")
    return AuditHead(seq, previous)


def _check(seq: int, text: str, digest: str, expected: int, previous: str) -> None:
    if seq != expected:
        raise _damaged(f"entry {expected:,} is missing")
    if _digest(text) != digest:
        raise _damaged(f"entry {seq:,} was changed")
    entry = json.loads(text)
    if entry["seq"] != seq or entry["previous"] != previous:
        raise _damaged(f"entry {seq:,} does not follow the one before it")


def _damaged(how: str) -> Damaged:
    return Damaged(f"the audit log is not what was written: {how}", hint="compare it with a backup")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
