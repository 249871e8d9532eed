"""Uploads over a network that cuts them, to a server that is killed; `make prove` makes hundreds."""

from __future__ import annotations

from pathlib import Path

from support.cut_uploads import cut_uploads


def test_uploads_that_are_cut_at_random_points_arrive_as_they_were_sent(tmp_path: Path) -> None:
    found = cut_uploads(tmp_path, count=12, kills=2, most_bytes=6 << 20)
    assert found["holds"], found
    assert found["requests_cut"] > 0 and found["replies_lost"] > 0
