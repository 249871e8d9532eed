"""kill -9 of the trainer, the agent and the calling script: no run lost, none double, the same weights bit for bit.

Two kills of each kind here; `make prove` does twenty.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.kills import KINDS, Victim, trials
from support.local import local_backend


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    home = tmp_path_factory.mktemp("kills")
    with local_backend(home) as backend:
        yield Victim(backend, home, seed=20261123)


@pytest.fixture(scope="module")
def expected(victim: Victim) -> dict[str, str]:
    return victim.undisturbed()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_loses_no_run_doubles_none_and_changes_no_weight(
    kind: str, victim: Victim, expected: dict[str, str]
) -> None:
    seen = list(trials(victim, kind, 2, expected))
    assert any(trial.hit for trial in seen), f"no kill met its moment: {seen}"
