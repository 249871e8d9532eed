"""What one agent has noted of a run, another one reads, of an older or newer version too."""

from __future__ import annotations

import json
from dataclasses import asdict

from fm.agent.held import Work
from fm.agent.ingest import Cursor


def test_what_was_noted_is_read_as_it_was() -> None:
    work = Work("train", 2, (0, 1), {"pid": 7}, Cursor(events=9, lines=3), {"base_digest": "d"}, finished=True)
    assert Work.read(json.loads(json.dumps(asdict(work)))) == work
    assert Work.read({}) == Work()


def test_notes_of_an_older_and_of_a_newer_agent_can_be_read() -> None:
    older = {"stage": "check", "attempt": 0, "handle": None, "cursor": {"events": 1}, "facts": {}}
    assert Work.read(older) == Work("check", 0, cursor=Cursor(events=1))
    assert Work.read({**older, "kills": 3}) == Work.read(older)
