"""What a preflight concludes from what ranks report, what it samples, and where it is refused; no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import respx

import fm
from fm.data import check, locate
from fm.ladder import checks
from fm.ladder.ground import Facts
from fm.ladder.overfit import is_learnt
from fm.ladder.sample import write_sample
from fm.ladder.widths import too_wide, widths
from fm.layout import StageFolder
from fm.request import TaskType, TrainRequest
from support.data import many_pairs


def ranks(*shares: list[list[int]], examples: int, **more: Any) -> list[Facts]:
    """Facts of processes that took `shares`, each a list of examples for each step."""
    header = {"examples": examples, "sharded": False, "dropout": False, "least_loss": 0.0}
    return [
        Facts(
            header,
            [
                {"step": at, "examples": taken, "loss": 2.0, "norm": 1.0, "gradient": "a", **more}
                for at, taken in enumerate(share)
            ],
        )
        for share in shares
    ]


SOUND = ranks([[0, 1], [2, 3]], [[4], [5]], examples=6)


def test_sound_shares_pass() -> None:
    alone = ranks([[0, 1, 4], [2, 3, 5]], examples=6)
    assert checks.wrongly_shared_out(SOUND, alone, batch_size=3) == ""
    assert checks.differing_gradients(SOUND) == ""
    assert checks.incomplete(SOUND, processes=2, steps=2) == ""


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (ranks([[0, 1], [2]], [[1], [3]], examples=4), "processes 0 and 1 took the same examples: 1"),
        (ranks([[0], [1]], [[2], [3]], examples=5), "nobody took examples 4"),
        (ranks([[0], [0]], [[1], [2]], examples=3), "examples 0 were taken more than once"),
    ],
)
def test_wrong_shares_are_named(found: list[Facts], says: str) -> None:
    batch = 3 if "nobody" in says else 2
    assert says in checks.wrongly_shared_out(found, None, batch_size=batch)


def test_other_examples_than_one_process_takes_are_named() -> None:
    alone = ranks([[0, 1, 2], [3, 4, 5]], examples=6)
    assert "one process alone 0, 1, 2" in checks.wrongly_shared_out(SOUND, alone, batch_size=3)


def test_gradients_of_equal_norm_that_differ_are_found_unless_each_holds_a_part() -> None:
    first, other = ranks([[0]], examples=2), ranks([[1]], examples=2, gradient="b")
    assert "processes 0 and 1 differ" in checks.differing_gradients([*first, *other])
    parted = [Facts({**facts.header, "sharded": True}, facts.steps) for facts in (*first, *other)]
    assert checks.differing_gradients(parted) == ""


def test_a_process_that_stopped_early_is_named() -> None:
    assert checks.incomplete(ranks([[0], [1]], [[2]], examples=3), processes=2, steps=2) == "process 1 did 1 steps of 2"
    assert checks.incomplete(SOUND[:1], processes=2, steps=2) == "1 of 2 processes took part"


def test_two_loggers_are_found(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    folder.events.write_text('{"type": "TRAIN_STARTED"}\n')
    line = json.dumps({"step": 1, "values": {"lr": 0.1}}) + "\n"
    folder.metrics.write_text(line)
    assert checks.doubly_logged(folder) == ""
    folder.metrics.write_text(2 * line)
    assert checks.doubly_logged(folder) == "lr of step 1 was logged more than once"
    folder.events.write_text('{"type": "TRAIN_STARTED"}\n' * 2)
    assert checks.doubly_logged(folder) == "2 processes reported TRAIN_STARTED"


@pytest.mark.parametrize(
    ("before", "after", "least", "learnt"),
    [(2.0, 0.2, 0.0, True), (2.0, 0.4, 0.0, False), (2.0, 0.6, 0.45, True), (20.0, 2.0, 0.0, False)],
)
def test_known_by_heart_is_a_share_of_what_can_be_learnt_and_no_more_than_chance_would_leave(
    before: float, after: float, least: float, learnt: bool
) -> None:
    assert is_learnt(before, after, least) is learnt


@pytest.mark.parametrize(
    ("asked", "rungs"),
    [
        ({}, ["1 process"]),
        ({"num_processes": 3}, ["1 process", "2 processes", "3 processes"]),
        ({"num_nodes": 2}, ["1 process", "2 processes on 2 nodes"]),
        (
            {"num_processes": 12, "num_nodes": 3},
            ["1 process", "2 processes", "4 processes", "8 processes on 2 nodes", "12 processes on 3 nodes"],
        ),
    ],
)
def test_processes_are_doubled_on_one_node_and_then_the_nodes(asked: dict[str, int], rungs: list[str]) -> None:
    request = TrainRequest.build({"model": "fm/nano-llama", "train_data_path": "d.jsonl", "method": "full", **asked})
    assert [str(width) for width in widths(request)] == rungs


@respx.mock
def test_a_rung_that_the_cluster_has_no_room_for_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "http://127.0.0.1:8265"
    monkeypatch.setenv("FM_RAY_ADDRESS", head)
    node = {"node_id": "n", "state": "ALIVE", "resources_total": {"CPU": 2.0}}
    respx.get(f"{head}/api/version").respond(json={"ray_version": "2.60.0"})
    respx.get(f"{head}/api/v0/nodes").respond(json={"data": {"result": {"result": [node]}}})
    given = {"task_type": "INSTRUCTION_FINETUNE", "method": "full", "launcher": "ray", "allow_oversize": True}
    data = many_pairs(tmp_path / "pairs.jsonl", 10)
    wide = fm.create("fm/nano-llama", data, **given, num_nodes=2, dry_run=True)
    assert "asks for 2 processes with 1 CPU each, 1 on each of 2 nodes; the cluster has 1 node" in too_wide(wide)
    assert too_wide(fm.create("fm/nano-llama", data, **given, num_processes=2, dry_run=True)) == ""


def test_a_sample_has_rows_from_all_over_the_data(tmp_path: Path) -> None:
    source = locate(str(many_pairs(tmp_path / "pairs.jsonl", 100)), field="train_data_path")
    task = TaskType.INSTRUCTION_FINETUNE
    sample = write_sample(check(source, task), task, tmp_path / "sample.jsonl", rows=4, characters=100)
    prompts = [json.loads(line)["prompt"] for line in Path(sample.path).read_text().splitlines()]
    assert [prompt.split()[2] for prompt in prompts] == ["0", "25", "50", "75"]


def test_a_sample_of_one_long_text_is_pieces_of_it(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{n:04} " for n in range(1000)))
    source, task = locate(str(tmp_path / "text.txt"), field="train_data_path"), TaskType.CONTINUED_PRETRAIN
    sample = write_sample(check(source, task), task, tmp_path / "sample.jsonl", rows=5, characters=50)
    pieces = [json.loads(line)["text"] for line in Path(sample.path).read_text().splitlines()]
    assert [piece[:4] for piece in pieces] == ["0000", "0200", "0400", "0600", "0800"]
    assert {len(piece) for piece in pieces} == {50}


def test_it_is_refused_where_the_backend_trains_elsewhere(tmp_path: Path, fm_fake: object) -> None:  # noqa: ARG001
    data = many_pairs(tmp_path / "pairs.jsonl", 10)
    with pytest.raises(fm.Unsupported, match="does not train on this machine"):
        fm.preflight("fm/nano-llama", data, task_type="INSTRUCTION_FINETUNE", method="full")


def test_it_takes_what_create_takes_and_refuses_what_create_refuses(tmp_path: Path) -> None:
    with pytest.raises(fm.RequestError, match="batch_size"):
        fm.preflight("fm/nano-llama", many_pairs(tmp_path / "p.jsonl", 3), batch_size=0)
