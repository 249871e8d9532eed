"""The registry: numbered versions of named models, and aliases. Called inside the store's transactions."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from fm.errors import Conflict, NotFound
from fm.names import check_alias, check_model_name
from fm.store import access
from fm.store.database import take_turns, upsert_into
from fm.store.schema import aliases, model_names, models
from fm.types import ModelRef, ModelVersion

_REF = re.compile(r"(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>[0-9]+))?")


@dataclass(frozen=True, slots=True)
class Ref:
    """A model as a user names it: the latest version, an alias, or a version's number."""

    name: str
    alias: str | None = None
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Reads ``a.b.c``, ``a.b.c@alias`` or ``a.b.c/3``.

        Raises:
            NotFound: it has not that form, so there is no such model.
        """
        match = _REF.fullmatch(text)
        if not match or match["name"].count(".") != 2:
            raise NotFound(
                f"{text!r} names no registered model", hint="write catalog.schema.model, with @alias or /version"
            )
        check_model_name(match["name"])
        return cls(match["name"], match["alias"], int(match["version"]) if match["version"] else None)


def get(connection: Connection, team: str, text: str) -> ModelVersion:
    """The version that `text` means for the team: one of its own, or of one that it was granted.

    Raises:
        NotFound: there is none.
    """
    owner = access.model_owner(connection, team, Ref.parse(text).name)
    return _as_seen_by(team, _own(connection, owner, text))


def _own(connection: Connection, team: str, text: str) -> ModelVersion:
    ref = Ref.parse(text)
    number = ref.version
    if ref.alias:
        at = (aliases.c.team == team, aliases.c.name == ref.name, aliases.c.alias == ref.alias)
        number = connection.execute(select(aliases.c.version).where(*at)).scalar()
        if number is None:
            raise NotFound(f"{ref.name} has no alias {ref.alias}", hint=f"`ftctl models get {ref.name}` lists them")
    query = select(models.c.record).where(models.c.team == team, models.c.name == ref.name)
    query = query.where(models.c.version == number) if number else query.order_by(models.c.version.desc()).limit(1)
    record = connection.execute(query).scalar()
    if record is None:
        raise NotFound(f"there is no model {text}", hint="`ftctl models list` shows those that there are")
    return _with_aliases(connection, ModelVersion.model_validate_json(record))


def _as_seen_by(team: str, version: ModelVersion) -> ModelVersion:
    """What another team was granted is the model, and not whose run made it of what."""
    return version if version.team == team else version.model_copy(update={"run_id": None, "lineage": {}})


def keep_still(connection: Connection, team: str, text: str) -> ModelVersion:
    """The team's own version that `text` names, which nobody removes or points aliases at until the transaction ends.

    Raises:
        NotFound: there is none.
    """
    take_turns(connection, f"model {team} {Ref.parse(text).name}")
    return _own(connection, team, text)


def keep_readable(connection: Connection, team: str, ref: ModelRef) -> ModelRef:
    """`ref` to a registered model that the team may read, with its owner and key; nobody removes it until the
    transaction ends.

    Raises:
        NotFound: there is none.
    """
    owner = access.model_owner(connection, team, Ref.parse(ref.name).name)
    if ref.team not in (None, owner):
        raise NotFound(f"there is no model {ref.name}", hint="it was granted when it was looked up, and is no more")
    version = keep_still(connection, owner, ref.name)
    return ref.model_copy(update={"team": owner, "key": version.key})


def list_versions(connection: Connection, team: str, name: str | None, limit: int) -> Sequence[ModelVersion]:
    """Versions that the team may read and whose name fits the glob `name`, newest first."""
    query = select(models.c.name, models.c.record).where(access.visible_models(team))
    rows = connection.execute(query.order_by(models.c.created_at.desc(), models.c.version.desc()))
    fitting = [record for found, record in rows if name is None or fnmatch.fnmatchcase(found, name)]
    versions = (ModelVersion.model_validate_json(record) for record in fitting[:limit])
    return [_with_aliases(connection, _as_seen_by(team, version)) for version in versions]


def insert_version(connection: Connection, version: ModelVersion) -> ModelVersion:
    """Stores `version` under the next free number. A run that has registered before gets its version again."""
    same = select(models.c.record).where(models.c.run_id == version.run_id)
    if version.run_id and (record := connection.execute(same).scalar()):
        return ModelVersion.model_validate_json(record)
    stored = version.model_copy(update={"version": _next_number(connection, version.team, version.name)})
    connection.execute(
        insert(models).values(
            team=stored.team,
            name=stored.name,
            version=stored.version,
            run_id=stored.run_id,
            created_at=stored.created_at.timestamp(),
            record=stored.model_dump_json(),
            bytes=stored.bytes,
        )
    )
    return stored


def _next_number(connection: Connection, team: str, name: str) -> int:
    at = (model_names.c.team == team, model_names.c.name == name)
    upsert = upsert_into(connection, model_names).values(team=team, name=name, last_version=1)
    connection.execute(
        upsert.on_conflict_do_update(
            index_elements=["team", "name"], set_={"last_version": model_names.c.last_version + 1}
        )
    )
    return int(connection.execute(select(model_names.c.last_version).where(*at)).scalar_one())


def set_alias(connection: Connection, team: str, text: str, alias: str, *, remove: bool) -> ModelVersion:
    """Points `alias` at the version that `text` names, or takes it away."""
    check_alias(alias)
    version = keep_still(connection, team, text)
    at = (aliases.c.team == team, aliases.c.name == version.name, aliases.c.alias == alias)
    gone = connection.execute(delete(aliases).where(*at)).rowcount
    if remove and not gone:
        raise NotFound(f"model {version.name} has no alias {alias}")
    if not remove:
        connection.execute(
            insert(aliases).values(team=team, name=version.name, alias=alias, version=version.version)
        )
    return _with_aliases(connection, version)


def remove(connection: Connection, team: str, text: str) -> ModelVersion:
    """Removes the version that `text` names from the registry, and returns what it was.

    Raises:
        Conflict: another version is based on it.
    """
    version = _own(connection, team, text)
    for record in connection.execute(select(models.c.record)).scalars():
        other = ModelVersion.model_validate_json(record)
        if other.base and (other.base.team or other.team, other.base.name) == (team, version.ref):
            which = other.ref if other.team == team else "a model of another team"
            raise Conflict(f"{version.ref} can't be removed: {which} is based on it", hint=f"remove {which} first")
    at = (models.c.team == team, models.c.name == version.name, models.c.version == version.version)
    connection.execute(delete(models).where(*at))
    pointing = (aliases.c.team == team, aliases.c.name == version.name, aliases.c.version == version.version)
    connection.execute(delete(aliases).where(*pointing))
    return version


def _with_aliases(connection: Connection, version: ModelVersion) -> ModelVersion:
    at = (aliases.c.team == version.team, aliases.c.name == version.name, aliases.c.version == version.version)
    names = connection.execute(select(aliases.c.alias).where(*at).order_by(aliases.c.alias)).scalars()
    return version.model_copy(update={"aliases": tuple(names)})
