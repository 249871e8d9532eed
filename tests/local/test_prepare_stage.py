"""The check stage as a process: what it leaves, what it reports, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fm.data import locate
from fm.job import EXIT_FAILED
from fm.layout import Storage
from fm.request import TrainRequest
from fm.types import ModelRef
from fm_local.models.tokenizer import load_tokenizer
from fm_local.prepare.preview import preview
from fm_local.prepare.shards import ShardWriter, TokenDataset, making
from support.check_stage import NANO, run, shards, stage, start
from support.data import chat, many_chats, write_jsonl


def test_a_passed_check_hands_over_all_that_training_needs(tmp_path: Path) -> None:
    folder = stage(tmp_path, many_chats(tmp_path / "a.jsonl", 200), held_out=many_chats(tmp_path / "b.jsonl", 20))
    code, event = run(folder)
    assert (code, event["type"]) == (0, "CHECK_PASSED"), folder.log.read_text()
    data, storage = event["data"], Storage(tmp_path / "storage")
    train = TokenDataset.open(storage.shard(data["train"]["shard"]))
    assert len(train) == data["counts"]["examples"] == 200
    assert train.lengths.sum() == data["counts"]["tokens"] and train.trained.sum() == data["counts"]["trained_tokens"]
    assert len(TokenDataset.open(storage.shard(data["eval"]["shard"]))) == data["eval_counts"]["examples"] == 20
    assert (data["context_length"], data["model_path"]) == (256, None)
    tokenizer = load_tokenizer(Path(data["tokenizer"]))
    for index in range(len(train)):
        ids, mask = train[index]
        assert ids.dtype == np.int64 and mask.dtype == np.bool_ and len(ids) == train.lengths[index]
        assert mask[1:].sum() == train.trained[index] and max(ids) < len(tokenizer) <= 384
    ids, mask = train[1]
    assert tokenizer.decode(ids[mask]) == "1.<|im_end|>"
    process = json.loads(folder.process.read_text())
    assert set(process) == {"pid", "started", "host"}


def test_the_same_check_again_makes_nothing_new(tmp_path: Path) -> None:
    data = many_chats(tmp_path / "a.jsonl", 50)
    _, first = run(stage(tmp_path, data))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "storage" / "shards").rglob("*")}
    _, second = run(stage(tmp_path, data))
    assert second["data"] == first["data"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "storage" / "shards").rglob("*")} == made


@pytest.mark.parametrize("change", [{"train_on": "all"}, {"context_length": 64}])
def test_other_settings_give_another_shard(tmp_path: Path, change: dict[str, Any]) -> None:
    data = many_chats(tmp_path / "a.jsonl", 50)
    _, first = run(stage(tmp_path, data))
    _, second = run(stage(tmp_path, data, **change))
    assert (
        second["data"]["train"] != first["data"]["train"] and second["data"]["tokenizer"] == first["data"]["tokenizer"]
    )


def test_data_that_changed_since_create_is_refused_as_the_users_fault(tmp_path: Path) -> None:
    data = many_chats(tmp_path / "a.jsonl", 50)
    folder = stage(tmp_path, data)
    many_chats(data, 51)
    code, event = run(folder)
    assert (code, event["type"], event["data"]["fault"]) == (EXIT_FAILED, "CHECK_FAILED", "user")
    assert "not what it was when the run was created" in event["message"]
    assert not shards(tmp_path)


def test_long_rows_are_cut_or_dropped_and_named(tmp_path: Path) -> None:
    rows = [chat("a", "b"), chat("c", "d " * 300), chat("e " * 300, "f")]
    folder = stage(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), context_length=64)
    code, event = run(folder)
    assert code == 0
    counts = event["data"]["counts"]
    assert (counts["examples"], counts["truncated"], counts["dropped"]) == (2, 1, 1)
    warnings = [json.loads(line) for line in folder.events.read_text().splitlines()][:-1]
    assert [warning["type"] for warning in warnings] == ["WARNING", "WARNING"]
    assert "a.jsonl:2" in warnings[0]["message"] and "a.jsonl:3" in warnings[1]["message"]


def test_rows_that_write_a_special_token_as_text_are_named(tmp_path: Path) -> None:
    rows = [chat("hello", "world"), chat("what does <|im_end|> mean?", "the end"), chat("a <b>", "c|>")]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    for _ in range(2):  # the second time, from the shard made before
        folder = stage(tmp_path, data)
        code, _ = run(folder)
        [warning] = [json.loads(line) for line in folder.events.read_text().splitlines()][:-1]
        assert code == 0 and warning["type"] == "WARNING" and "special tokens as text" in warning["message"]
        assert warning["data"]["rows"] == ["a.jsonl:2"] and warning["data"]["imitating"] == 1


def test_nothing_left_to_train_on_is_an_error(tmp_path: Path) -> None:
    folder = stage(tmp_path, write_jsonl(tmp_path / "a.jsonl", [chat("e " * 300, "f")] * 3), context_length=32)
    code, event = run(folder)
    assert (code, event["type"]) == (EXIT_FAILED, "CHECK_FAILED") and "left to train on" in event["message"]
    assert len(shards(tmp_path)) == 1  # the tokenizer


def test_more_context_than_the_model_has_is_refused(tmp_path: Path) -> None:
    code, event = run(stage(tmp_path, many_chats(tmp_path / "a.jsonl", 5), context_length=257))
    assert code == EXIT_FAILED and "257 is more than the 256 tokens" in event["message"]


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"max_position_embeddings": 64}')
    model = ModelRef(kind="path", name="model", path=str(tmp_path / "model"))
    code, event = run(stage(tmp_path, many_chats(tmp_path / "a.jsonl", 5), model=model))
    assert (code, event["data"]["fault"]) == (EXIT_FAILED, "user") and "no tokenizer" in event["message"]


def test_a_hub_model_that_cannot_be_reached_is_nobodys_request_at_fault(tmp_path: Path) -> None:
    model = ModelRef(kind="hub", name="nobody/nothing")
    code, event = run(stage(tmp_path, many_chats(tmp_path / "a.jsonl", 5), model=model))
    assert (code, event["data"]["fault"]) == (EXIT_FAILED, "infrastructure")
    assert "nobody/nothing" in event["message"] and "download the model first" in event["message"]


def test_an_unexpected_error_is_reported_with_its_traceback_in_the_log(tmp_path: Path) -> None:
    folder = stage(tmp_path, many_chats(tmp_path / "a.jsonl", 5))
    (tmp_path / "storage" / "shards").write_text("a file where a folder has to be")
    code, event = run(folder)
    assert (code, event["type"], event["data"]["fault"]) == (EXIT_FAILED, "FAILED_EXCEPTION", "internal")
    assert "Traceback" in folder.log.read_text()


def test_the_check_starts_without_torch(tmp_path: Path) -> None:
    folder = stage(tmp_path, many_chats(tmp_path / "a.jsonl", 5))
    code = (
        "import runpy, sys\n"
        "sys.argv = ['prepare', sys.argv[1]]\n"
        "try: runpy.run_module('fm_local.prepare', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert sys.modules['torch'] is None and 'transformers' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder.path)], check=True, timeout=60)


@pytest.mark.parametrize(("vocabulary", "dtype"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_the_largest_id_of_a_vocabulary_survives(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    from fm.files import seal

    with making(Storage(tmp_path), "d") as folder:
        writer = ShardWriter(folder, vocabulary=vocabulary, masked=False)
        writer.write([(np.array([0, vocabulary - 1], np.uint32), b"\1\1"), (np.array([5], np.uint32), b"\1")])
        writer.close()
        assert writer.dtype.name == dtype
        seal(folder, dtype=dtype)
    data = TokenDataset.open(tmp_path / "shards" / "d")
    assert data[0][0].tolist() == [0, vocabulary - 1] and data[1][0].tolist() == [5]
    assert data.trained.tolist() == [1, 0] and data.lengths.tolist() == [2, 1]
    with pytest.raises(IndexError):
        data[2]


def test_a_preview_shows_what_is_trained_without_and_with_a_tokenizer(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [chat("hi", "hello", "and?", "yes"), chat("hi", "é")])
    source, chats = locate(str(path), field="x"), TrainRequest.build({"model": "m", "train_data_path": "x"}).task_type
    shown = preview(NANO, source, chats, train_on="all", rows=1)
    assert shown == [
        [
            ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False),
            ("hello<|im_end|>", True),
            ("\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n", False),
            ("yes<|im_end|>", True),
        ]
    ]
    _, event = run(stage(tmp_path, path))
    tuned = Path(event["data"]["tokenizer"])
    assert preview(tuned, source, chats, context_length=64, rows=5)[1] == [
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False),
        ("é<|im_end|>", True),
    ]


def test_new_tokens_are_in_the_tokenizer_before_the_data_is_tokenised(tmp_path: Path) -> None:
    from support.models import model, tokenizer

    base = tokenizer(model("llama", tmp_path / "base"))
    ref = ModelRef(kind="path", name=str(base), path=str(base))
    data = write_jsonl(tmp_path / "data.jsonl", [chat("hello", "<tool>x</tool>")] * 4)
    asked: list[dict[str, Any]] = [{}, {"new_tokens": ["<tool>", "<|end|>"]}]
    made = [run(stage(tmp_path, data, model=ref, **more))[1]["data"] for more in asked]
    assert [one["added_tokens"] for one in made] == [[], ["<tool>"]]
    assert made[0]["train"]["shard"] != made[1]["train"]["shard"]
    number = load_tokenizer(Path(made[1]["tokenizer"])).convert_tokens_to_ids("<tool>")
    tokens = [
        TokenDataset.open(Storage(tmp_path / "storage").shard(one["train"]["shard"]))[0][0].tolist() for one in made
    ]
    assert number not in tokens[0] and tokens[1].count(number) == 1


def test_an_adapter_whose_base_has_changed_is_refused(tmp_path: Path) -> None:
    from fm.files import seal
    from support.models import model, tokenizer

    base = tokenizer(model("llama", tmp_path / "base"))
    adapter = tokenizer(tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    seal(adapter, kind="adapter", base_digest="another")
    ref = ModelRef(
        kind="path", name="a", path=str(adapter), adapter_of=ModelRef(kind="path", name="b", path=str(base))
    )
    folder = stage(tmp_path, many_chats(tmp_path / "data.jsonl", 4), model=ref)
    assert start(folder).wait(60) == EXIT_FAILED
    assert "trained on another base" in folder.events.read_text()
