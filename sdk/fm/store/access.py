"""Who may do what: the one place that decides. What nothing here allows is refused.

A team sees its own runs, models and data sets, and of other teams' models and data sets those that it was granted, for
reading alone. What it may not see is for it the same as what there is not.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, or_, select, update

from fm.clock import Clock
from fm.errors import Forbidden, NotFound, Unauthorised
from fm.store import audit
from fm.store.database import Database
from fm.store.schema import datasets, grants, models, tokens
from fm.types import Principal, Scope

_TOKEN = re.compile(r"ftc_([0-9a-z]{10})_[0-9a-f]{64}")
_NO_TOKEN = "0" * 64
"""No token's digest: what an unknown one is compared with, so that it takes as long as a known one."""
_NOTED_EVERY = 60.0
"""Seconds between two notes of a token's use, and between two audit entries on its refusal: asking often, or being
refused often, must not fill the store."""


def model_owner(connection: Connection, team: str, name: str) -> str:
    """The team whose model `name` means for `team`: its own if it has one, else the one that it was granted."""
    own = select(models.c.version).where(models.c.team == team, models.c.name == name).limit(1)
    if connection.execute(own).first():
        return team
    granted = select(grants.c.team).where(_granted(team, "model"), grants.c.object == name)
    return connection.execute(granted).scalar() or team


def visible_models(team: str) -> ColumnElement[bool]:
    """Which rows of `models` the team may read: its own, and those granted whose names it does not use itself."""
    own = models.alias()
    used = exists().where(own.c.team == team, own.c.name == models.c.name)
    given = exists().where(_granted(team, "model"), grants.c.object == models.c.name, grants.c.team == models.c.team)
    return or_(models.c.team == team, and_(given, ~used))


def find_dataset(connection: Connection, team: str, digest: str) -> Row[Any]:
    """The row of the data set, the team's own or one that it was granted; marked sensitive if one of them is.

    Raises:
        NotFound: there is none that it may read.
    """
    rows = connection.execute(select(datasets).where(datasets.c.digest == digest, _visible_datasets(team))).all()
    if not rows:
        raise NotFound(f"there is no data set {digest[:12]}…", hint="`ftctl data list` shows those that there are")
    return max(rows, key=lambda row: (row.sensitive, row.team == team))


def require_download(connection: Connection, team: str, digest: str) -> Row[Any]:
    """The row of a data set that may be handed out.

    Raises:
        NotFound: there is none that the team may read.
        Forbidden: it is marked sensitive.
    """
    row = find_dataset(connection, team, digest)
    if row.sensitive:
        raise Forbidden(f"data set {row.name} is marked sensitive: it can be trained on, and not downloaded")
    return row


def are_sensitive(connection: Connection, team: str, digests: Collection[str]) -> bool:
    """Whether one of these data sets, as far as the team may read them, is marked sensitive."""
    at = (datasets.c.digest.in_(digests), datasets.c.sensitive != 0, _visible_datasets(team))
    return connection.execute(select(datasets.c.digest).where(*at).limit(1)).first() is not None


def _visible_datasets(team: str) -> ColumnElement[bool]:
    given = exists().where(
        _granted(team, "data"), grants.c.object == datasets.c.digest, grants.c.team == datasets.c.team
    )
    return or_(datasets.c.team == team, given)


def _granted(team: str, kind: str) -> ColumnElement[bool]:
    return and_(grants.c.to_team == team, grants.c.kind == kind)


class Access:
    """Turns tokens into principals, and says what their scopes allow. Safe to use from several threads."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def authenticate(self, token: str, *, address: str = "") -> Principal:
        """On whose behalf the bearer of `token` acts. `address` is where the call came from, for the audit log.

        Raises:
            Unauthorised: the token is unknown, expired or revoked.
        """
        match = _TOKEN.fullmatch(token)
        with self._database.read() as connection:
            row = connection.execute(select(tokens).where(tokens.c.id == (match[1] if match else ""))).first()
        if not hmac.compare_digest(digest_of(token), row.digest if row else _NO_TOKEN) or row is None:
            raise Unauthorised("the token is not known here", hint="ask who runs the server for one")
        who = _principal(row, address)
        if wrong := self._what_is_wrong(row):
            self._note_refusal(who, row, "", wrong)
            raise Unauthorised(f"token {row.id} {wrong}", hint="ask who runs the server for a new one")
        self._note_use(row)
        return who

    def lapsed(self, token_ids: Collection[str]) -> frozenset[str]:
        """Those of the tokens that have expired, or been revoked, or removed with their users."""
        if not token_ids:
            return frozenset()
        with self._database.read() as connection:
            rows = connection.execute(select(tokens).where(tokens.c.id.in_(token_ids))).all()
        return frozenset(token_ids) - {row.id for row in rows if not self._what_is_wrong(row)}

    def require(self, who: Principal, scope: Scope, action: str, object: str = "") -> None:
        """Returns if `who` has `scope`; else notes that it tried to do `action` to `object`.

        Raises:
            Forbidden: it has not.
        """
        if scope in who.scopes:
            return
        self.note_refusal(who, object, f"{action} needs {scope}")
        raise Forbidden(
            f"{action} needs a token with the scope {scope}; this one has {', '.join(sorted(who.scopes)) or 'none'}",
            hint="ask who runs the server for one",
        )

    def note_refusal(self, who: Principal, object: str, reason: str) -> None:
        """Notes in the audit log that `who` was kept from `object`; of each token once a minute."""
        with self._database.read() as connection:
            row = connection.execute(select(tokens).where(tokens.c.id == who.token_id)).first()
        self._note_refusal(who, row, object, reason)

    def _what_is_wrong(self, token: Row[Any]) -> str:
        if token.revoked_at is not None:
            return "has been revoked"
        if token.expires_at is not None and token.expires_at <= self._clock.now().timestamp():
            return f"expired on {datetime.fromtimestamp(token.expires_at, UTC):%Y-%m-%d}"
        return ""

    def _note_use(self, token: Row[Any]) -> None:
        now = self._clock.now().timestamp()
        if now - (token.last_used_at or 0.0) >= _NOTED_EVERY:
            with self._database.write() as connection:
                connection.execute(update(tokens).where(tokens.c.id == token.id).values(last_used_at=now))

    def _note_refusal(self, who: Principal, token: Row[Any] | None, object: str, reason: str) -> None:
        now = self._clock.now()
        if token and now.timestamp() - (token.last_refused_at or 0.0) < _NOTED_EVERY:
            return
        with self._database.write() as connection:
            if token:
                at = update(tokens).where(tokens.c.id == token.id)
                connection.execute(at.values(last_refused_at=now.timestamp()))
            audit.record(connection, who, now, "access.refused", object, reason=reason)


def digest_of(token: str) -> str:
    """What the store keeps of a token."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _principal(token: Row[Any], address: str) -> Principal:
    return Principal.model_validate(
        {
            "user": token.user,
            "team": token.team,
            "scopes": token.scopes.split(),
            "token_id": token.id,
            "address": address,
        }
    )
