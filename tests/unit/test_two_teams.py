"""What one team may see of another's: nothing, but for what it was granted. On SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from fm.backends import base
from fm.backends.base import RunFilter
from fm.backends.stored import StoreBackend
from fm.errors import Conflict, NotFound
from fm.examine import ThisMachine
from fm.lifecycle import Status
from fm.request import TrainRequest
from fm.resolve import resolve_model
from fm.store import access
from fm.types import DataFile, ModelRef, RunRecord
from fm.uploads import Digester
from support.teams import TwoTeams

REDS = "0" * 64
MODEL = "secret.red.model"


@pytest.fixture
def teams(store_url: str, tmp_path: Path) -> Iterator[TwoTeams]:
    teams = TwoTeams(store_url, tmp_path / "runs")
    yield teams
    teams.close()


@pytest.fixture
def reds(teams: TwoTeams) -> RunRecord:
    """A run of red's that has trained and registered a model, with an alias."""
    run = teams.finish(teams.create(teams.red, name="secret-run", register_to=MODEL, eval_prompts=("hello",)))
    assert run.status is Status.COMPLETED
    teams.red.models.alias(MODEL, "secret-alias")
    return run


def child_of(backend: StoreBackend, model: str) -> RunRecord:
    from support.stores import new_run

    ref = ModelRef(kind="registered", name=model, team="red")
    new = new_run()
    return backend.runs.create(
        base.NewRun(request=new.request, model=ref, train_data=new.train_data), idempotency_key=f"of {model}"
    )


# What blue gets from each verb with the name of a run or a model. Exhaustive: a new verb has to be added here.
RUN_VERBS: dict[str, Callable[[StoreBackend, str], Any]] = {
    "create": lambda backend, run: len({backend.runs.create(_plain(), idempotency_key=run).id}),
    "get": lambda backend, run: backend.runs.get(run),
    "list": lambda backend, run: (
        backend.runs.list(RunFilter(name=run)), backend.runs.list(RunFilter(experiment_id=run)),
        backend.runs.list(RunFilter()), backend.runs.list(RunFilter(owners=frozenset({"ada"}))),
    ),
    "events": lambda backend, run: backend.runs.events(run),
    "follow": lambda backend, run: list(backend.runs.follow(run)),
    "metrics": lambda backend, run: backend.runs.metrics(run),
    "logs": lambda backend, run: backend.runs.logs(run),
    "checkpoints": lambda backend, run: backend.runs.checkpoints(run),
    "open_checkpoint": lambda backend, run: backend.runs.open_checkpoint(run, 5),
    "read_checkpoint": lambda backend, run: backend.runs.read_checkpoint(run, 5, "weights.safetensors"),
    "cancel": lambda backend, run: backend.runs.cancel(run),
    "resume": lambda backend, run: backend.runs.resume(run, idempotency_key="x"),
    "delete": lambda backend, run: backend.runs.delete(run),
}
MODEL_VERBS: dict[str, Callable[[StoreBackend, str], Any]] = {
    "get": lambda backend, ref: backend.models.get(ref),
    "list": lambda backend, ref: (backend.models.list(name=ref), backend.models.list()),
    "alias": lambda backend, ref: backend.models.alias(ref, "mine"),
    "open": lambda backend, ref: backend.models.open(ref),
    "read": lambda backend, ref: backend.models.read(ref, "config.json"),
    "delete": lambda backend, ref: backend.models.delete(ref),
}
MACHINE_VERBS: dict[str, Callable[[StoreBackend, str], Any]] = {
    "examine": lambda backend, ref: ThisMachine(backend).examine(replace_model(ref), "process"),
}
WITHOUT_NAMES = {"admit", "plan"}
"""What is planned and admitted was examined before."""


def replace_model(ref: str) -> TrainRequest:
    return _plain().request.model_copy(update={"model": ref})


FILE_VERBS: dict[str, Callable[[StoreBackend, str], Any]] = {
    "put": lambda backend, digest: backend.files.put("/d.jsonl", digest=digest, bytes=1, rows=1),
    "begin": lambda backend, digest: backend.files.begin(digest, [DataFile("d.jsonl", 2)]),
    "append": lambda backend, digest: backend.files.append(digest, 1, b"x"),
    "finish": lambda backend, digest: backend.files.finish(digest, name="mine"),
    "get": lambda backend, digest: backend.files.get(digest),
    "list": lambda backend, _digest: backend.files.list(),
    "listing": lambda backend, digest: backend.files.listing(digest),
    "read": lambda backend, digest: backend.files.read(digest, "d.jsonl"),
    "delete": lambda backend, digest: backend.files.delete(digest),
}


def _plain() -> base.NewRun:
    from support.stores import new_run

    return new_run()


def outcome(verb: Callable[[StoreBackend, str], Any], backend: StoreBackend, name: str) -> str:
    """What came back or was raised, without the name that was asked for."""
    try:
        result = repr(verb(backend, name))
    except (NotFound, Conflict) as error:
        result = f"{type(error).__name__}: {error}"
    return result.replace(name, "NAME").replace(name[:12], "NAME")


def test_the_verbs_below_are_all_that_there_are() -> None:
    parts = {
        name: {verb for verb in vars(part) if not verb.startswith("_")}
        for name, part in vars(base).items()
        if getattr(part, "_is_protocol", False) and part not in (Protocol, base.Backend)
    }
    assert {name: verbs - WITHOUT_NAMES for name, verbs in parts.items()} == {
        "Runs": set(RUN_VERBS), "Models": set(MODEL_VERBS), "Machine": set(MACHINE_VERBS), "Files": set(FILE_VERBS),
    }  # fmt: skip


@pytest.mark.parametrize("verb", RUN_VERBS)
def test_anothers_run_is_the_same_as_none(teams: TwoTeams, reds: RunRecord, verb: str) -> None:
    names = {reds.id: "run-zzzzzzzzzzzz", reds.id[:9]: "run-zzzzz", reds.name: "no-such-run", reds.id[4:]: "zzzzzzzz"}
    for name, missing in names.items():
        assert outcome(RUN_VERBS[verb], teams.blue, name) == outcome(RUN_VERBS[verb], teams.blue, missing)
    assert teams.red.runs.get(reds.id) == reds


@pytest.mark.parametrize("verb", [*MODEL_VERBS, *MACHINE_VERBS])
def test_anothers_model_is_the_same_as_none(teams: TwoTeams, reds: RunRecord, verb: str) -> None:  # noqa: ARG001
    ask = (MODEL_VERBS | MACHINE_VERBS)[verb]
    for suffix in ("", "/1", "@secret-alias", "@none", "/7"):
        seen = outcome(ask, teams.blue, MODEL + suffix)
        assert seen == outcome(ask, teams.blue, "secret.red.nodel" + suffix).replace(
            "secret.red.nodel", MODEL
        )
    assert teams.red.models.get(MODEL).aliases == ("secret-alias",)


@pytest.mark.parametrize("verb", FILE_VERBS)
def test_anothers_data_set_is_the_same_as_none(teams: TwoTeams, verb: str) -> None:
    digester = Digester()
    digester.begin("d.jsonl", 2)
    digester.feed(b"{}")
    reds = digester.hexdigest()
    teams.red.files.begin(reds, [DataFile("d.jsonl", 2)])
    teams.red.files.append(reds, 0, b"{}")
    teams.red.files.finish(reds, name="secret")
    assert outcome(FILE_VERBS[verb], teams.blue, reds) == outcome(FILE_VERBS[verb], teams.blue, "f" * 64)
    assert [found.name for found in teams.red.files.list()] == ["secret"]


def test_a_page_can_not_be_asked_for_after_anothers_run(teams: TwoTeams, reds: RunRecord) -> None:
    teams.create(teams.blue)
    for cursor in (reds.id, "run-zzzzzzzzzzzz"):
        with pytest.raises(NotFound):
            teams.blue.runs.list(RunFilter(cursor=cursor))


def test_anothers_key_makes_a_run_of_ones_own(teams: TwoTeams) -> None:
    first = teams.red.runs.create(_plain(), idempotency_key="k")
    assert teams.blue.runs.create(_plain(), idempotency_key="k").id != first.id


def test_anothers_model_is_not_trained_on(teams: TwoTeams, reds: RunRecord) -> None:  # noqa: ARG001
    with pytest.raises(NotFound):
        resolve_model(MODEL, teams.blue)
    with pytest.raises(NotFound):
        child_of(teams.blue, f"{MODEL}/1")
    assert teams.blue.runs.list(RunFilter()) == []


def test_two_teams_have_models_of_one_name_each_with_its_own_numbers_and_aliases(teams: TwoTeams) -> None:
    for backend in (teams.red, teams.blue):
        teams.finish(teams.create(backend, register_to=MODEL))
    teams.red.models.alias(MODEL, "prod")
    assert [version.team for version in teams.blue.models.list()] == ["blue"]
    assert teams.blue.models.get(MODEL).aliases == ()
    waiting = child_of(teams.red, f"{MODEL}/1")
    teams.blue.models.delete(MODEL)  # a run of red's needs red's
    with pytest.raises(Conflict, match=waiting.name):
        teams.red.models.delete(MODEL)


def test_a_granted_model_is_read_and_trained_on_and_not_changed(teams: TwoTeams, reds: RunRecord) -> None:
    teams.admin.grant("red", "model", MODEL, "blue")
    for ref in (MODEL, f"{MODEL}/1", f"{MODEL}@secret-alias"):
        seen = teams.blue.models.get(ref)
        assert (seen.ref, seen.team, seen.aliases) == (f"{MODEL}/1", "red", ("secret-alias",))
        assert teams.blue.models.open(ref) == teams.red.models.open(ref)
    assert [version.ref for version in teams.blue.models.list(name="secret.*")] == [f"{MODEL}/1"]
    for change in (
        lambda: teams.blue.models.alias(MODEL, "mine"),
        lambda: teams.blue.models.alias(MODEL, "secret-alias", remove=True),
        lambda: teams.blue.models.delete(MODEL),
    ):
        with pytest.raises(NotFound):
            change()
    assert resolve_model(MODEL, teams.blue).team == "red"
    child = child_of(teams.blue, f"{MODEL}/1")
    assert (child.team, child.model.team, child.model.key) == ("blue", "red", teams.red.models.get(MODEL).key)
    shown = repr(seen.model_copy(update={"path": None, "key": ""}))  # a server hides the folder
    assert reds.id not in shown and reds.name not in shown


def test_a_granted_model_that_another_team_uses_is_kept_without_saying_by_whom(
    teams: TwoTeams, reds: RunRecord  # noqa: ARG001
) -> None:
    teams.admin.grant("red", "model", MODEL, "blue")
    child = child_of(teams.blue, f"{MODEL}/1")
    with pytest.raises(Conflict, match="a run of another team") as error:
        teams.red.models.delete(MODEL)
    assert child.name not in str(error.value)


def test_a_grant_that_is_taken_back_leaves_nothing(teams: TwoTeams, reds: RunRecord) -> None:  # noqa: ARG001
    teams.admin.grant("red", "model", MODEL, "blue")
    teams.blue.models.get(MODEL)
    teams.admin.revoke_grant("red", "model", MODEL, "blue")
    assert teams.blue.models.list() == []
    with pytest.raises(NotFound):
        teams.blue.models.get(MODEL)
    with pytest.raises(NotFound):
        child_of(teams.blue, f"{MODEL}/1")


def test_ones_own_model_comes_before_a_granted_one_of_the_same_name(teams: TwoTeams, reds: RunRecord) -> None:  # noqa: ARG001
    teams.admin.grant("red", "model", MODEL, "blue")
    teams.finish(teams.create(teams.blue, register_to=MODEL))
    assert teams.blue.models.get(MODEL).team == "blue"
    assert [version.team for version in teams.blue.models.list()] == ["blue"]
    with pytest.raises(NotFound):
        teams.blue.models.get(f"{MODEL}@secret-alias")
    with pytest.raises(NotFound):  # it was resolved before blue had its own
        child_of(teams.blue, f"{MODEL}/1")


def test_a_grant_on_a_model_is_none_on_the_run_that_made_it(teams: TwoTeams, reds: RunRecord) -> None:
    teams.admin.grant("red", "model", MODEL, "blue")
    with pytest.raises(NotFound):
        teams.blue.runs.get(reds.id)


def test_data_sets_are_seen_by_their_team_and_by_those_that_were_granted_them(teams: TwoTeams) -> None:
    teams.dataset("red", REDS)
    assert [found.name for found in teams.admin.datasets()] == ["red.jsonl"]
    with teams.store.database.read() as connection:
        assert access.find_dataset(connection, "red", REDS).name == "red.jsonl"
        with pytest.raises(NotFound):
            access.find_dataset(connection, "blue", REDS)
        with pytest.raises(NotFound):
            access.require_download(connection, "blue", REDS)
    teams.admin.grant("red", "data", REDS, "blue")
    with teams.store.database.read() as connection:
        assert access.require_download(connection, "blue", REDS).team == "red"


def test_what_changes_something_is_in_the_audit_log_once_and_what_only_reads_is_not(teams: TwoTeams) -> None:
    start = teams.admin.verify_audit().entries
    run = teams.finish(teams.create(teams.red, register_to=MODEL))
    for _ in range(2):
        teams.red.runs.create(_plain(), idempotency_key="same")
    waiting = teams.red.runs.list(RunFilter(statuses=frozenset({Status.QUEUED})))[0]
    teams.red.runs.cancel(waiting.id)
    teams.red.runs.list(RunFilter())
    teams.red.runs.events(run.id)
    teams.red.models.alias(MODEL, "prod")
    teams.red.models.alias(MODEL, "prod", remove=True)
    teams.red.models.open(MODEL)
    teams.red.models.delete(MODEL)
    teams.red.runs.delete(run.id)
    entries = list(reversed(teams.admin.audit(100)))[start:]
    assert [(entry.action, entry.object) for entry in entries] == [
        ("run.create", run.id), ("run.create", waiting.id), ("run.cancel", waiting.id),
        ("model.alias", f"{MODEL}/1"), ("model.unalias", f"{MODEL}/1"), ("model.open", f"{MODEL}/1"),
        ("model.delete", f"{MODEL}/1"), ("run.delete", run.id),
    ]  # fmt: skip
    assert {(entry.user, entry.team) for entry in entries} == {("ada", "red")}
    assert teams.admin.verify_audit().entries == start + 8


def test_what_is_refused_leaves_no_entry_of_having_been_done(teams: TwoTeams, reds: RunRecord) -> None:
    before = teams.admin.verify_audit()
    for call in (teams.blue.runs.cancel, teams.blue.runs.delete, teams.blue.models.delete):
        with pytest.raises(NotFound):
            call(reds.id if call != teams.blue.models.delete else MODEL)
    assert teams.admin.verify_audit() == before
