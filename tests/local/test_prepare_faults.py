"""A check that is ended midway, runs beside another, finds no room or a broken shard, or has a large file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fm.job import EXIT_DISK_FULL, EXIT_STOPPED
from fm.layout import Storage
from fm.types import ModelRef
from fm_local.prepare.shards import ShardWriter, TokenDataset, digest_of, making
from support.check_stage import run, shards, stage, start
from support.data import many_chats


def test_a_full_disk_has_an_exit_code_of_its_own_and_leaves_nothing(tmp_path: Path) -> None:
    folder = stage(tmp_path, many_chats(tmp_path / "a.jsonl", 50))
    wrapper = (
        "import errno, os, runpy, sys\n"
        "import fm.files\n"
        "def full(*_): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "os.fsync = full\n"
        "sys.argv = ['prepare', sys.argv[1]]\n"
        "runpy.run_module('fm_local.prepare', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", wrapper, str(folder.path)], capture_output=True, timeout=60)
    assert done.returncode == EXIT_DISK_FULL, done.stderr.decode()
    assert b"no space left" in done.stdout.lower() + done.stderr.lower()
    assert not shards(tmp_path)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_check_that_is_ended_midway_leaves_no_half_shard_and_the_next_one_passes(tmp_path: Path, how: int) -> None:
    data = many_chats(tmp_path / "a.jsonl", 20_000)
    folder = stage(tmp_path, data)
    process = start(folder)
    wait_for(lambda: any((tmp_path / "storage" / "shards").glob(".*/ids.bin")), process)
    process.send_signal(how)
    code = process.wait(60)
    assert code == (EXIT_STOPPED if how == signal.SIGTERM else -signal.SIGKILL)
    finished = {name for name in shards(tmp_path) if not name.startswith(".")}
    assert len(finished) == 1  # the tokenizer
    if how == signal.SIGTERM:
        assert shards(tmp_path) == finished
    code, event = run(stage(tmp_path, data))
    assert code == 0 and event["data"]["counts"]["examples"] == 20_000


def test_two_checks_of_the_same_data_at_once_both_pass(tmp_path: Path) -> None:
    data = many_chats(tmp_path / "a.jsonl", 2000)
    folders = [stage(tmp_path, data), stage(tmp_path, data)]
    processes = [start(folder) for folder in folders]
    assert [process.wait(60) for process in processes] == [0, 0], [folder.log.read_text() for folder in folders]
    events = [json.loads(folder.events.read_text().splitlines()[-1]) for folder in folders]
    assert events[0]["data"] == events[1]["data"]
    assert len(shards(tmp_path)) == 2 and not any(name.startswith(".") for name in shards(tmp_path))


def test_a_large_file_is_tokenised_in_bounded_memory(tmp_path: Path) -> None:
    # A tokenizer that is there already, since training one takes more than using it.
    run(stage(tmp_path, lines_without_a_gap(tmp_path / "a.txt", 800), task_type="CONTINUED_PRETRAIN"))
    [tokenizer] = (tmp_path / "storage" / "shards").glob("*/tokenizer.json")
    model = ModelRef(kind="path", name=str(tokenizer.parent), path=str(tokenizer.parent))
    peaks = []
    for rows in (800, 160_000):
        data = lines_without_a_gap(tmp_path / f"{rows}.txt", rows)
        folder = stage(tmp_path, data, model=model, task_type="CONTINUED_PRETRAIN", context_length=512)
        # Of this process alone: RUSAGE_CHILDREN remembers the largest of all that the tests have started.
        _, status, usage = os.wait4(start(folder).pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, folder.log.read_text()
        peaks.append(usage.ru_maxrss)
    # The 2,800,000 tokens as the tokenizer gives them, 150 bytes each, would be 420 MB.
    assert peaks[1] - peaks[0] < 300_000


def lines_without_a_gap(path: Path, rows: int) -> Path:
    path.write_text("".join(f"line {row} of a long text that has no blank line in it\n" for row in range(rows)))
    return path


def test_a_shard_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    data = many_chats(tmp_path / "a.jsonl", 50)
    _, event = run(stage(tmp_path, data))
    shard = tmp_path / "storage" / "shards" / event["data"]["train"]["shard"]
    os.truncate(shard / "ids.bin", 10)
    code, again = run(stage(tmp_path, data))
    assert code == 0 and again["data"] == event["data"]
    assert len(TokenDataset.open(shard)) == 50


def test_a_failed_making_leaves_nothing(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with pytest.raises(RuntimeError), making(storage, digest_of(kind="x")) as folder:
        ShardWriter(folder, vocabulary=10, masked=True).write([(np.array([1, 2]), b"\0\1")])
        raise RuntimeError
    assert list(storage.shards.iterdir()) == []
