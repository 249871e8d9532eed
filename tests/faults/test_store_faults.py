"""A store whose writers are killed or kept waiting, in small numbers; `make prove` makes a thousand kills."""

from __future__ import annotations

from pathlib import Path

from support import store_faults as faults


def test_no_acknowledged_write_is_lost_when_writers_are_killed(tmp_path: Path) -> None:
    found = faults.killed_writers(tmp_path, kills=20)
    assert found["holds"], found
    assert found["acknowledged"] > 20


def test_sixteen_writers_lose_nothing_to_a_lock_that_somebody_holds(tmp_path: Path) -> None:
    found = faults.held_lock(tmp_path, seconds=2)
    assert found["holds"], found
