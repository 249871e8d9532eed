"""Administering a store: its teams, users, tokens, grants and data sets. Every order is noted in the audit log."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from fm.clock import Clock
from fm.errors import Conflict, NotFound, RequestError
from fm.names import check_model_name, check_team_name, check_user_name, random_word
from fm.store import access, audit, sensitive
from fm.store.audit import AuditEntry, AuditHead
from fm.store.database import Database
from fm.store.members import Grant, GrantKind, NewToken, Team, TokenRecord, User
from fm.store.schema import datasets, grants, models, teams, tokens, users
from fm.types import ALL_SCOPES, Dataset, Principal, Scope


class Administration:
    """The orders of `who`, which the caller has found to be an administrator."""

    def __init__(self, database: Database, clock: Clock, who: Principal) -> None:
        self._database = database
        self._clock = clock
        self._who = who

    # Teams

    def teams(self) -> Sequence[Team]:
        """All teams, by name."""
        with self._database.read() as connection:
            return [Team(**_fields(row)) for row in connection.execute(select(teams).order_by(teams.c.name))]

    def add_team(self, name: str) -> None:
        """Makes a team without limits.

        Raises:
            Conflict: there is one of that name.
        """
        check_team_name(name)
        with self._database.write() as connection:
            if _exists(connection, teams.c.name == name):
                raise Conflict(f"there is a team {name} already")
            connection.execute(insert(teams).values(name=name, created_at=self._now().timestamp()))
            self._note(connection, "team.add", name)

    def limit_team(self, name: str, **limits: int | None) -> None:
        """Sets `max_running` or `max_disk` (bytes) of a team, or both; None takes the limit away.

        Raises:
            NotFound: there is no such team.
        """
        with self._database.write() as connection:
            _require_team(connection, name)
            connection.execute(update(teams).where(teams.c.name == name).values(**limits))
            self._note(connection, "team.limit", name, **limits)

    # Users

    def users(self, team: str | None = None) -> Sequence[User]:
        """The users of a team, or of all."""
        query = select(users).order_by(users.c.team, users.c.name)
        with self._database.read() as connection:
            rows = connection.execute(query if team is None else query.where(users.c.team == team))
            return [User(**_fields(row)) for row in rows]

    def add_user(self, team: str, name: str) -> None:
        """Makes `name` a user of `team`.

        Raises:
            NotFound: there is no such team.
            Conflict: it has such a user.
        """
        check_user_name(name)
        with self._database.write() as connection:
            _require_team(connection, team)
            if _exists(connection, users.c.team == team, users.c.name == name):
                raise Conflict(f"team {team} has a user {name} already")
            connection.execute(insert(users).values(team=team, name=name, created_at=self._now().timestamp()))
            self._note(connection, "user.add", f"{team}/{name}")

    def remove_user(self, team: str, name: str) -> None:
        """Removes a user and revokes the user's tokens; runs and models stay with the team.

        Raises:
            NotFound: the team has no such user.
        """
        now = self._now()
        with self._database.write() as connection:
            if not connection.execute(delete(users).where(users.c.team == team, users.c.name == name)).rowcount:
                raise NotFound(f"team {team} has no user {name}", hint="`ftctl admin users list` shows all")
            theirs = (tokens.c.team == team, tokens.c.user == name, tokens.c.revoked_at.is_(None))
            revoked = connection.execute(update(tokens).where(*theirs).values(revoked_at=now.timestamp())).rowcount
            self._note(connection, "user.remove", f"{team}/{name}", tokens=revoked)

    # Tokens

    def tokens(self, team: str | None = None) -> Sequence[TokenRecord]:
        """What is known of the tokens of a team, or of all; newest first."""
        query = select(tokens).order_by(tokens.c.created_at.desc(), tokens.c.id)
        with self._database.read() as connection:
            rows = connection.execute(query if team is None else query.where(tokens.c.team == team))
            return [_token(_fields(row)) for row in rows]

    def make_token(
        self, team: str, user: str, *, scopes: Collection[Scope] = ("read", "submit"), days: float | None = 90
    ) -> NewToken:
        """Makes a token that is good for `days`; None: for ever.

        Raises:
            NotFound: the team has no such user.
            RequestError: there is no such scope, or none is given.
        """
        if not scopes or not set(scopes) <= ALL_SCOPES:
            known = ", ".join(sorted(ALL_SCOPES))
            raise RequestError(f"scopes {', '.join(scopes)!r} are not known", field="scopes", hint=f"any of {known}")
        now, token_id = self._now(), random_word(10)
        text = f"ftc_{token_id}_{secrets.token_hex(32)}"
        with self._database.write() as connection:
            if not _exists(connection, users.c.team == team, users.c.name == user):
                raise NotFound(f"team {team} has no user {user}", hint=f"ftctl admin users add {team} {user}")
            expires = None if days is None else now + timedelta(days=days)
            connection.execute(
                insert(tokens).values(
                    id=token_id,
                    digest=access.digest_of(text),
                    team=team,
                    user=user,
                    scopes=" ".join(sorted(scopes)),
                    created_at=now.timestamp(),
                    expires_at=expires and expires.timestamp(),
                )
            )
            detail = {"user": f"{team}/{user}", "scopes": sorted(scopes), "expires": expires and expires.isoformat()}
            self._note(connection, "token.make", token_id, **detail)
        return NewToken(token_id, text)

    def revoke_token(self, token_id: str) -> None:
        """Ends a token at once. Ending it twice changes nothing.

        Raises:
            NotFound: there is no such token.
        """
        with self._database.write() as connection:
            row = connection.execute(select(tokens).where(tokens.c.id == token_id).with_for_update()).first()
            if row is None:
                raise NotFound(f"there is no token {token_id}", hint="`ftctl admin tokens list` shows all")
            if row.revoked_at is None:
                at = update(tokens).where(tokens.c.id == token_id)
                connection.execute(at.values(revoked_at=self._now().timestamp()))
                self._note(connection, "token.revoke", token_id, user=f"{row.team}/{row.user}")

    # Grants

    def grants(self) -> Sequence[Grant]:
        """All grants, by the team that gave them."""
        query = select(grants).order_by(grants.c.team, grants.c.kind, grants.c.object, grants.c.to_team)
        with self._database.read() as connection:
            return [Grant(**_fields(row)) for row in connection.execute(query)]

    def grant(self, team: str, kind: GrantKind, object: str, to_team: str) -> None:
        """Lets `to_team` read a model (all versions of that name) or a data set (by its digest) of `team`.

        Raises:
            NotFound: there is no such team, model or data set.
            Conflict: it is granted already, or another team granted a model of that name: it would mean two things.
        """
        with self._database.write() as connection:
            for name in (team, to_team):
                _require_team(connection, name)
            if team == to_team:
                raise Conflict(f"{object} is {team}'s own")
            self._require_object(connection, team, kind, object)
            same = (grants.c.to_team == to_team, grants.c.kind == kind, grants.c.object == object)
            given = list(connection.execute(select(grants.c.team).where(*same)).scalars())
            if team in given:
                raise Conflict(f"team {to_team} may read {object} already")
            if given and kind == "model":
                raise Conflict(
                    f"team {to_team} may read the model {object} of team {given[0]}: the name would mean two models",
                    hint=f"ftctl admin grants rm {given[0]} model {object} {to_team}",
                )
            values = {"team": team, "kind": kind, "object": object, "to_team": to_team}
            connection.execute(insert(grants).values(**values, created_at=self._now().timestamp()))
            self._note(connection, "grant.make", object, team=team, kind=kind, to_team=to_team)

    def revoke_grant(self, team: str, kind: GrantKind, object: str, to_team: str) -> None:
        """Takes a grant back. Runs that use what it allowed go on. If it was on a sensitive data set, the samples of
        the other team's runs on it are removed: they have been withheld, and nothing would say so any more.

        Raises:
            NotFound: there is no such grant.
        """
        values = {"team": team, "kind": kind, "object": object, "to_team": to_team}
        with self._database.write() as connection:
            if kind == "data" and access.are_sensitive(connection, to_team, [object]):
                sensitive.remove_samples(connection, to_team, object)
            at = (grants.c[column] == value for column, value in values.items())
            if not connection.execute(delete(grants).where(*at)).rowcount:
                raise NotFound(f"team {to_team} has no grant on {object} of team {team}")
            self._note(connection, "grant.revoke", object, team=team, kind=kind, to_team=to_team)

    def _require_object(self, connection: Connection, team: str, kind: GrantKind, object: str) -> None:
        if kind == "model":
            found = _exists(connection, models.c.team == team, models.c.name == check_model_name(object))
        else:
            found = _exists(connection, datasets.c.team == team, datasets.c.digest == object)
        if not found:
            raise NotFound(f"team {team} has no {'model' if kind == 'model' else 'data set'} {object}")

    # Data sets

    def datasets(self) -> Sequence[Dataset]:
        """The data sets of all teams, newest first."""
        query = select(datasets).order_by(datasets.c.created_at.desc(), datasets.c.team, datasets.c.digest)
        with self._database.read() as connection:
            rows = map(_fields, connection.execute(query))
            return [Dataset(**(row | {"sensitive": bool(row["sensitive"])})) for row in rows]

    def mark_dataset(self, team: str, digest: str, *, sensitive: bool) -> None:
        """Marks a data set as sensitive, or as no longer so. From then on, what was stored of it before is treated
        likewise: samples in events are withheld.

        Raises:
            NotFound: the team has no such data set.
        """
        at = (datasets.c.team == team, datasets.c.digest == digest)
        with self._database.write() as connection:
            if not connection.execute(update(datasets).where(*at).values(sensitive=int(sensitive))).rowcount:
                raise NotFound(f"team {team} has no data set {digest}", hint="`ftctl admin data list` shows all")
            self._note(connection, "data.mark", digest, team=team, sensitive=sensitive)

    # The audit log

    def audit(self, limit: int) -> Sequence[AuditEntry]:
        """The newest entries, newest first."""
        with self._database.read() as connection:
            return list(islice(audit.read(connection), limit))

    def verify_audit(self, noted: str | None = None) -> AuditHead:
        """See `fm.store.audit.verify`."""
        with self._database.read() as connection:
            return audit.verify(connection, noted)

    def _note(self, connection: Connection, action: str, object: str, **detail: Any) -> None:
        audit.record(connection, self._who, self._now(), action, object, **detail)

    def _now(self) -> datetime:
        return self._clock.now()


def _exists(connection: Connection, *at: Any) -> bool:
    return connection.execute(select(1).where(*at).limit(1)).first() is not None


def _require_team(connection: Connection, name: str) -> None:
    if not _exists(connection, teams.c.name == name):
        raise NotFound(f"there is no team {name}", hint="`ftctl admin teams list` shows all")


def _fields(row: Any) -> dict[str, Any]:
    """A row's values by their columns, with moments as such."""
    return {
        name: datetime.fromtimestamp(value, UTC) if name.endswith("_at") and value is not None else value
        for name, value in row._mapping.items()
    }


def _token(values: dict[str, Any]) -> TokenRecord:
    shown = {name: values[name] for name in TokenRecord.__slots__}
    return TokenRecord(**(shown | {"scopes": tuple(values["scopes"].split())}))


