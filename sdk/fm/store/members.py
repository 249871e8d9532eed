"""What is known of teams, users, tokens, grants and data sets: the values that `fm.store.admin` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

GrantKind = Literal["model", "data"]


@dataclass(frozen=True, slots=True)
class Team:
    """A team and its limits; None: no limit."""

    name: str
    created_at: datetime
    max_running: int | None
    """Runs that may be going at once."""
    max_disk: int | None
    """Bytes of runs, models and data sets beyond which no run of the team is started."""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody in a team. Who is in two teams is a user of each."""

    team: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What is known of a token; the token itself is kept nowhere."""

    id: str
    team: str
    user: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was just made. `text` is to be shown once; it stands in no repr."""

    id: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """`to_team` may read `object` of `team`: a model by its name, or a data set by its digest."""

    team: str
    kind: GrantKind
    object: str
    to_team: str
    created_at: datetime
