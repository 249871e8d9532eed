"""Data that is marked sensitive: what its runs may not show, and that nobody undoes the mark by the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fm.errors import Forbidden, NotFound, RequestError
from fm.lifecycle import EventType
from fm.store import access
from fm.types import Event, RunRecord
from support.teams import RED, TwoTeams

REDS = "0" * 64


@pytest.fixture
def teams(store_url: str, tmp_path: Path) -> Iterator[TwoTeams]:
    teams = TwoTeams(store_url, tmp_path / "runs")
    yield teams
    teams.close()


def test_sensitive_data_is_not_downloaded_not_even_through_a_grant_or_a_copy(teams: TwoTeams) -> None:
    teams.dataset("red", REDS, sensitive=True)
    teams.dataset("blue", REDS)
    teams.admin.grant("red", "data", REDS, "blue")
    with teams.store.database.read() as connection:
        for team in ("red", "blue"):
            assert access.find_dataset(connection, team, REDS)
            with pytest.raises(Forbidden, match="sensitive"):
                access.require_download(connection, team, REDS)
        assert not access.are_sensitive(connection, "green", [REDS])


def test_who_asks_for_sensitive_data_in_vain_is_noted(teams: TwoTeams) -> None:
    teams.dataset("red", REDS, sensitive=True)
    with pytest.raises(Forbidden, match="sensitive"):
        teams.store.require_download(RED, REDS)
    [entry] = teams.admin.audit(1)
    assert (entry.action, entry.user, entry.team, entry.object) == ("access.refused", RED.user, "red", REDS)
    assert entry.detail == {"reason": "data.read of sensitive data"}
    teams.admin.mark_dataset("red", REDS, sensitive=False)
    teams.store.require_download(RED, REDS)
    assert next(iter(teams.admin.audit(1))).action == "data.read"


@pytest.mark.parametrize("given", [{"eval_prompts": ("hello",)}, {"trackers": ("mlflow",)}, {"trackers": ("wandb",)}])
def test_a_run_that_would_show_sensitive_data_is_refused(teams: TwoTeams, given: dict[str, Any]) -> None:
    teams.dataset("red", REDS, sensitive=True)
    with pytest.raises(RequestError, match="sensitive") as error:
        teams.create(teams.red, digest=REDS, **given)
    assert error.value.field in given
    teams.create(teams.red, digest=REDS, trackers=("tensorboard",))
    teams.create(teams.red, digest="1" * 64, **given)


def test_samples_taken_before_the_data_was_marked_are_withheld(teams: TwoTeams) -> None:
    run = teams.finish(teams.create(teams.red, digest=REDS, eval_prompts=("hello",)))
    before = {event.type: event for event in teams.red.runs.events(run.id)}
    assert before[EventType.SAMPLES_GENERATED].data["samples"]
    teams.dataset("red", REDS)
    teams.admin.mark_dataset("red", REDS, sensitive=True)
    after = {event.type: event for event in teams.red.runs.events(run.id)}
    assert "samples" not in after[EventType.SAMPLES_GENERATED].data
    assert "sensitive" in after[EventType.SAMPLES_GENERATED].message
    assert "a scripted answer" not in repr(after)
    teams.admin.mark_dataset("red", REDS, sensitive=False)
    assert {event.type: event for event in teams.red.runs.events(run.id)} == before
    with pytest.raises(NotFound):
        teams.admin.mark_dataset("blue", REDS, sensitive=True)


def samples(teams: TwoTeams, run: RunRecord) -> Event:
    backend = teams.red if run.team == "red" else teams.blue
    return next(event for event in backend.runs.events(run.id) if event.type is EventType.SAMPLES_GENERATED)


def test_sensitive_data_is_not_removed_by_its_team_and_with_it_what_withholds_samples(teams: TwoTeams) -> None:
    run = teams.finish(teams.create(teams.red, digest=REDS, eval_prompts=("hello",)))
    teams.dataset("red", REDS)
    teams.admin.mark_dataset("red", REDS, sensitive=True)
    with pytest.raises(Forbidden, match="sensitive"):
        teams.red.files.delete(REDS)
    assert "samples" not in samples(teams, run).data
    teams.admin.mark_dataset("red", REDS, sensitive=False)
    teams.red.files.delete(REDS)


def test_samples_of_another_teams_run_stay_hidden_when_its_grant_is_taken_back(teams: TwoTeams) -> None:
    teams.dataset("red", REDS)
    teams.admin.grant("red", "data", REDS, "blue")
    theirs = teams.finish(teams.create(teams.blue, digest=REDS, eval_prompts=("hello",)))
    other = teams.finish(teams.create(teams.blue, digest="1" * 64, eval_prompts=("hello",)))
    teams.admin.mark_dataset("red", REDS, sensitive=True)
    assert "samples" not in samples(teams, theirs).data
    teams.admin.revoke_grant("red", "data", REDS, "blue")
    assert "samples" not in samples(teams, theirs).data
    assert samples(teams, other).data["samples"]


def test_a_team_may_mark_its_data_when_it_sends_it_again_and_not_unmark_it(teams: TwoTeams) -> None:
    teams.dataset("red", REDS)
    assert not teams.red.files.get(REDS).sensitive
    assert teams.red.files.finish(REDS, name="d", sensitive=True).sensitive
    assert teams.red.files.finish(REDS, name="d", sensitive=False).sensitive
    assert teams.red.files.get(REDS).sensitive
    last = teams.admin.audit(1)[0]
    assert (last.action, last.object, last.detail["sensitive"]) == ("data.add", REDS, True)
