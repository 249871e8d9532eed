"""One logical create, one run: also when the script is killed between sending and acknowledgement."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fm.errors import RequestError, Unavailable
from fm.pending import pending_key
from support.rows import chats

SCRIPT = """
import sys, time, fm
from fm.backends.stored import StoreRuns

stored = StoreRuns.create
def create_and_hang(self, new, *, idempotency_key):
    record = stored(self, new, idempotency_key=idempotency_key)
    if "hang" in sys.argv:
        print(record.id, flush=True)
        time.sleep(600)
    return record
StoreRuns.create = create_and_hang
run = fm.create("fm/nano-llama", sys.argv[1], method="full", seed=int(sys.argv[2]))
print(run.id, flush=True)
"""


def start(data: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "FM_AGENT": "off"}
    command = [sys.executable, "-c", SCRIPT, str(data), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def run_id(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out.strip()


def pending(home: Path) -> list[Path]:
    return sorted((home / "fm" / "pending").glob("*.json"))


def test_a_script_killed_before_the_acknowledgement_gets_the_same_run_when_run_again(
    tmp_path: Path, isolated: Path
) -> None:
    data = chats(tmp_path / "d.jsonl")
    killed = start(data, "1", "hang")
    first = run_id(killed)
    assert first.startswith("run-")
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert len(pending(isolated)) == 1
    assert finish(start(data, "1")) == first
    assert pending(isolated) == []
    # Acknowledged now: a script that is deliberately run again makes a new run.
    assert finish(start(data, "1")) != first


def test_another_request_does_not_take_a_dead_scripts_run(tmp_path: Path) -> None:
    data = chats(tmp_path / "d.jsonl")
    killed = start(data, "1", "hang")
    first = run_id(killed)
    killed.kill()
    killed.communicate()
    assert finish(start(data, "2")) != first


def test_two_live_scripts_with_the_same_request_make_two_runs(tmp_path: Path, isolated: Path) -> None:
    data = chats(tmp_path / "d.jsonl")
    hanging = start(data, "1", "hang")
    first = run_id(hanging)
    try:
        assert finish(start(data, "1")) != first
        assert len(pending(isolated)) == 1
    finally:
        hanging.kill()
        hanging.communicate()


def test_the_key_is_on_disk_before_it_is_used_and_gone_once_acknowledged(tmp_path: Path) -> None:
    with pending_key(tmp_path / "p", "digest") as key:
        (path,) = (tmp_path / "p").glob("*.json")
        assert json.loads(path.read_text())["key"] == key
        assert path.stat().st_mode & 0o777 == 0o600
    assert list((tmp_path / "p").glob("*.json")) == []


def test_an_uncertain_failure_keeps_the_key_for_the_next_try(tmp_path: Path) -> None:
    with pytest.raises(Unavailable), pending_key(tmp_path, "digest") as first:
        raise Unavailable("no answer")
    with pending_key(tmp_path, "digest") as second:
        assert second == first
    with pending_key(tmp_path, "digest") as third:
        assert third != first


def test_a_refusal_forgets_the_key(tmp_path: Path) -> None:
    with pytest.raises(RequestError), pending_key(tmp_path, "digest") as first:
        raise RequestError("wrong")
    with pending_key(tmp_path, "digest") as second:
        assert second != first


def test_a_process_number_given_to_another_process_counts_as_dead(tmp_path: Path) -> None:
    (tmp_path / "digest.json").write_text(json.dumps({"key": "k", "pid": os.getpid(), "started": 1.0}))
    with pending_key(tmp_path, "digest") as key:
        assert key == "k"


@pytest.mark.parametrize("left", ["", "{", "[]", '{"pid": 1}', "null"])
def test_a_damaged_file_is_passed_over(left: str, tmp_path: Path) -> None:
    (tmp_path / "digest.json").write_text(left)
    with pending_key(tmp_path, "digest") as key:
        assert len(key) == 32
