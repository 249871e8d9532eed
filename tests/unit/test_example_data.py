"""The demo's data: enough of it, the same every time, valid, and nothing held out seen in training."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import fm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import stdlib_data  # noqa: E402


@pytest.fixture(scope="module")
def objects() -> list[stdlib_data.Documented]:
    return stdlib_data.documented_objects()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, objects: list[stdlib_data.Documented]) -> Path:
    out = tmp_path_factory.mktemp("stdlib")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib_data, "documented_objects", lambda: objects)  # to look at them all takes seconds
        stdlib_data.build(out)
    return out


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_there_are_5000_pairs_and_some_are_held_out(data: Path) -> None:
    assert len(rows(data / "pairs.jsonl")) >= 5000
    assert len(rows(data / "pairs-heldout.jsonl")) >= 100
    assert len(rows(data / "chats.jsonl")) >= 2500
    assert sum(path.stat().st_size for path in (data / "text").iterdir()) > 500_000


def test_building_again_replaces_the_files_with_the_same_bytes(data: Path) -> None:
    before = digests(data)
    (data / "text" / "left-over.txt").write_text("of another Python")
    stdlib_data.build(data)
    assert digests(data) == before


def test_no_object_and_no_first_sentence_is_on_both_sides(objects: list[stdlib_data.Documented]) -> None:
    sides: tuple[list[stdlib_data.Documented], ...] = ([], [])
    for item in objects:
        sides[item.held_out].append(item)
    for attribute in ("name", "docstring", "summary"):
        trained, held_out = ({getattr(item, attribute) for item in side} for side in sides)
        assert not trained & held_out
        assert held_out


def test_no_prompt_is_on_both_sides_or_asked_twice(data: Path) -> None:
    prompts = [row["prompt"] for name in ("pairs.jsonl", "pairs-heldout.jsonl") for row in rows(data / name)]
    assert len(prompts) == len(set(prompts))


def test_answers_are_short_and_end_without_a_line_break(data: Path) -> None:
    for row in rows(data / "pairs.jsonl"):
        assert row["prompt"].endswith("?\n")
        assert row["response"].startswith("It is ")
        assert len(row["response"]) <= 200
        assert row["response"] == row["response"].strip()


def test_a_second_turn_asks_for_an_example_a_signature_or_the_module(data: Path) -> None:
    second = [row["messages"][2]["content"] for row in rows(data / "chats.jsonl")]
    for question in ("Show me an example.", "What is its signature?", "Which module is it in?"):
        assert second.count(question) >= 50


@pytest.mark.parametrize(
    ("name", "task_type"),
    [("text", "CONTINUED_PRETRAIN"), ("pairs.jsonl", "INSTRUCTION_FINETUNE"), ("chats.jsonl", "CHAT_COMPLETION")],
)
@pytest.mark.parametrize("side", ["", "-heldout"])
def test_all_data_passes_the_checks_of_its_task(data: Path, name: str, task_type: str, side: str) -> None:
    stem, dot, suffix = name.partition(".")
    with fm.backend("fake"):
        plan = fm.validate("fm/tiny-llama", data / f"{stem}{side}{dot}{suffix}", task_type=task_type, method="full")
    assert plan.train_data.rows


def test_signatures_leave_self_out_and_summaries_are_one_sentence(
    objects: list[stdlib_data.Documented],
) -> None:
    by_name = {item.name: item for item in objects}
    assert by_name["json.dumps"].signature.startswith("(obj, *, skipkeys=False")
    assert by_name["pathlib.Path.read_bytes"].signature == "()"
    assert by_name["json.dumps"].summary == "Serialize ``obj`` to a JSON formatted ``str``."
    assert by_name["json"].kind == "module"
    assert not by_name["json"].signature
