"""Live events: in order, once, without a gap, whatever happens to the server and the connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import fm
from fm.backends.fake import FakeBackend
from fm.backends.scripted import Script
from fm.remote.opening import open_remote
from fm.testing.serving import Served
from fm.types import Event, Principal
from support.cutting import proxied
from support.data import many_pairs
from support.server import ask, ended_run
from support.waiting import until


def messages(text: str) -> list[tuple[str, str]]:
    """(kind, id) of each message of a stream."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], fields.get("id", "")))
    return found


def test_a_stream_has_every_event_once_and_says_its_end(server: Served, tmp_path: Path) -> None:
    run = ended_run(server, tmp_path)
    count = len(run.get_events())
    answer = ask(server, "GET", f"/v1/runs/{run.name}/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert messages(answer.text) == [*(("event", str(seq)) for seq in range(1, count + 1)), ("end", "")]


def test_a_stream_goes_on_after_the_last_event_that_was_seen(server: Served, tmp_path: Path) -> None:
    run = ended_run(server, tmp_path)
    count = len(run.get_events())
    for seen in (0, 3, count, count + 5):
        answer = ask(server, "GET", f"/v1/runs/{run.id}/stream", headers={"Last-Event-ID": str(seen)})
        assert messages(answer.text) == [*(("event", str(seq)) for seq in range(seen + 1, count + 1)), ("end", "")]


@pytest.mark.parametrize("last", ["-1", "x", "1e9", "9" * 30])
def test_a_last_event_that_is_none_is_refused(server: Served, tmp_path: Path, last: str) -> None:
    run = ended_run(server, tmp_path)
    assert ask(server, "GET", f"/v1/runs/{run.id}/stream", headers={"Last-Event-ID": last}).status_code == 400


@pytest.fixture
def held(server: Served) -> Iterator[Callable[[Path], fm.Run]]:
    """Makes a run that trains until it is cancelled."""
    assert isinstance(server.kept, FakeBackend)
    server.kept.launcher.script = Script(holds_at=2)

    def make(folder: Path) -> fm.Run:
        data = many_pairs(folder / "p.jsonl", 4)
        return fm.create("fm/nano-llama", data, task_type="INSTRUCTION_FINETUNE", method="full", backend=server.remote)

    yield make
    server.kept.launcher.script = Script()


def test_a_quiet_stream_is_kept_alive(
    server: Served, held: Callable[[Path], fm.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fm.wire.KEEP_ALIVE_SECONDS", 0.05)
    run = held(tmp_path)
    headers = {"Authorization": f"Bearer {server.token}"}
    with httpx.stream("GET", f"{server.url}/v1/runs/{run.id}/stream", headers=headers, trust_env=False) as stream:
        breaths = (line for line in stream.iter_lines() if line.startswith(":"))
        assert [next(breaths) for _ in range(3)] == [": keep-alive"] * 3
    run.cancel()


def test_a_restart_after_a_quiet_stretch_is_borne_with(
    server: Served, held: Callable[[Path], fm.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fm.wire.KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr("fm.remote.stream.OUTAGE_SECONDS", 1.0)
    run = held(tmp_path)
    with proxied(server.url) as proxy:
        remote, seen = open_remote(proxy.url, token=server.token), []
        follower = threading.Thread(target=lambda: seen.extend(remote.runs.follow(run.id)))
        follower.start()
        time.sleep(1.5)  # nothing but keep-alives, for longer than an outage may last
        proxy.reply = lambda number, block: b"" if number == 1 else block
        until(lambda: proxy.connections >= 2, seconds=10)
        run.cancel()
        follower.join(30)
    assert seen == run.get_events() and seen[-1].is_terminal_state()


def test_all_who_follow_a_run_see_the_same(held: Callable[[Path], fm.Run], tmp_path: Path) -> None:
    run = held(tmp_path)
    seen: list[list[Event]] = [[] for _ in range(8)]
    threads = [threading.Thread(target=lambda mine=mine: mine.extend(run.events(follow=True))) for mine in seen]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    run.cancel()
    for thread in threads:
        thread.join(30)
    assert all(mine == run.get_events() and mine[-1].is_terminal_state() for mine in seen)


def test_a_run_that_is_gone_has_no_events_to_follow(server: Served, tmp_path: Path) -> None:
    run = ended_run(server, tmp_path)
    fm.delete(run)
    with pytest.raises(fm.NotFound):
        list(run.events(follow=True))


def test_cut_connections_lose_and_repeat_nothing(server: Served, tmp_path: Path) -> None:
    run = ended_run(server, tmp_path, training_duration="40ba")
    with proxied(server.url) as proxy:
        # Every connection but the tenth is cut after some bytes, also within a line.
        sent: dict[int, int] = {}

        def cut(number: int, block: bytes) -> bytes:
            left = 900 - sent.get(number, 0) if number < 10 else len(block)
            sent[number] = sent.get(number, 0) + len(block)
            return block[:left]

        proxy.reply = cut
        remote = open_remote(proxy.url, token=server.token)
        assert list(remote.runs.follow(run.id)) == run.get_events()
        assert proxy.connections >= 5


def test_a_token_that_is_revoked_ends_its_streams_and_no_others(
    server: Served, held: Callable[[Path], fm.Run], tmp_path: Path
) -> None:
    run = held(tmp_path)
    tokens = {"revoked": server.token_for("local"), "kept": server.token}
    seen: dict[str, str] = dict.fromkeys(tokens, "")
    administration = server.kept.store.administration(Principal(user="root"))

    def follow(name: str) -> None:
        headers = {"Authorization": f"Bearer {tokens[name]}"}
        with httpx.stream("GET", f"{server.url}/v1/runs/{run.id}/stream", headers=headers, timeout=60) as answer:
            for text in answer.iter_text():
                seen[name] += text

    threads = [threading.Thread(target=follow, args=(name,), daemon=True) for name in tokens]
    for thread in threads:
        thread.start()
    until(lambda: all("event: event" in text for text in seen.values()))
    administration.revoke_token(tokens["revoked"].split("_")[1])
    until(lambda: "event: error" in seen["revoked"])
    assert '"unauthorised"' in seen["revoked"]
    assert threads[1].is_alive()
    run.cancel()
    until(lambda: messages(seen["kept"])[-1][0] == "end")
