"""How fast data is checked and tokenised, beside the tokenizer alone on the same texts, and in how much memory.

    python benchmarks/prepare_throughput.py --megabytes 100 --out prepare.json

The data are questions about the standard library and its docstrings as answers, half of them with a second turn. Each
figure is of one process that does nothing else: `check` as `fm.create` runs it; the check stage as the agent starts it
(verifying, parsing, rendering, tokenising, masking, writing, start-up included); the tokenizer's `encode_batch` alone,
with the texts rendered before its clock runs. Throughput counts characters of rendered text, so that the two compare.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fm.data import check, locate, read_examples
from fm.job import Job
from fm.layout import StageFolder
from fm.request import TaskType, TrainRequest
from fm.types import ModelRef

VOCABULARY = 16_384
SKIPPED = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter"}
TASK = TaskType.CHAT_COMPLETION
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A model's own template, shaped as Qwen2.5's: rendered by Jinja, unlike our own."""


def docstrings() -> list[tuple[str, str, str]]:
    """(module, name, docstring) of the standard library's public functions and classes."""
    found = []
    for name in sorted(set(sys.stdlib_module_names) - SKIPPED):
        if name.startswith("_"):
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                module = importlib.import_module(name)
        except Exception:  # some modules belong to other systems
            continue
        for word, value in vars(module).items():
            text = inspect.getdoc(value) if callable(value) and not word.startswith("_") else None
            if text and len(text) > 20:
                found.append((name, word, text))
    return found


def write_chats(path: Path, size: int) -> None:
    """About `size` bytes of chats, one on each line, no two alike."""
    documents, chance, written, number = docstrings(), random.Random(17), 0, 0
    with path.open("w") as file:
        while written < size:
            module, word, text = chance.choice(documents)
            number += 1
            messages = [
                {"role": "user", "content": f"Question {number}: what does {module}.{word} do?"},
                {"role": "assistant", "content": text[: chance.randrange(200, 2000)]},
            ]
            if number % 2:
                messages += [
                    {"role": "user", "content": f"In which module is {word}?"},
                    {"role": "assistant", "content": f"{word} is in the module {module}."},
                ]
            written += file.write(json.dumps({"messages": messages}) + "\n")


def make_model(folder: Path, data: Path) -> None:
    """A folder that looks like a model: a tokenizer trained on the data's beginning, and a configuration."""
    from fm.presets import Preset
    from fm_local.prepare.preset_tokenizer import _sample, _save, _train

    folder.mkdir()
    preset = Preset("bench", "bench", VOCABULARY, 8, 8, 1, 1, 4096)
    beginning = data.with_name("beginning.jsonl")
    with data.open("rb") as file:
        beginning.write_bytes(b"".join(file.readlines(8 << 20)))
    source = locate(str(beginning), field="train_data_path")
    _save(_train(VOCABULARY, _sample(source, check(source, TASK), TASK)), preset, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 4096}))


def measure_tokenizer(model: Path, data: Path) -> dict[str, float]:
    """Characters, tokens and seconds of `encode_batch` alone, in batches of 1,000 texts."""
    from fm_local.models.tokenizer import ChatTemplate, chat_template_of, load_tokenizer
    from fm_local.prepare.rendering import Renderer

    tokenizer = load_tokenizer(model)
    renderer = Renderer(ChatTemplate(chat_template_of(tokenizer), tokenizer.special_tokens_map), "last")
    characters = tokens = 0
    seconds = cpu = 0.0
    examples: list[Any] = []

    def encode() -> None:
        nonlocal characters, tokens, seconds, cpu
        texts = [item.text for item in renderer.render(examples)]
        begin, cpu_begin = time.perf_counter(), time.process_time()
        encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        seconds += time.perf_counter() - begin
        cpu += time.process_time() - cpu_begin
        characters += sum(map(len, texts))
        tokens += sum(map(len, encodings))
        examples.clear()

    for _, _, example in read_examples(locate(str(data), field="train_data_path"), TASK):
        examples.append(example)
        if len(examples) == 1000:
            encode()
    encode()
    return {"characters": characters, "tokens": tokens, "seconds": seconds, "cpu": cpu}


def measure_check(data: Path) -> dict[str, Any]:
    """The check that `fm.create` makes, and what a job records of the data."""
    begin = time.perf_counter()
    ref = check(locate(str(data), field="train_data_path"), TASK)
    return {"seconds": time.perf_counter() - begin, "ref": ref.model_dump()}


def measure_stage(model: Path, data: Path, ref: dict[str, Any], root: Path) -> dict[str, float]:
    """Seconds, seconds of processor time and peak resident memory of the check stage, from its start to its exit, and
    the tokens that it counted."""
    folder = StageFolder(root / "runs" / "run-benchmark" / "check")
    Job(
        stage="check", run_id="run-benchmark", run_name="benchmark", attempt=0,
        request=TrainRequest.build({"model": str(model), "train_data_path": str(data), "task_type": TASK}),
        model=ModelRef(kind="path", name=str(model), path=str(model)), train_data=ref,  # type: ignore[arg-type]
        storage_root=str(root), started_at=datetime.now(UTC),
    ).write(folder)
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fm_local.prepare", str(folder.path)], check=True)
    seconds = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    counts = json.loads(folder.events.read_text().splitlines()[-1])["data"]["counts"]
    return {
        "seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "peak_rss": used.ru_maxrss * 1024,
        "tokens": counts["tokens"],
    }


def in_process(part: str, **arguments: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--part", part, json.dumps(arguments)]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def measure(size: int, folder: Path, *, compare: bool) -> dict[str, Any]:
    """What is reported; with `compare`, beside the tokenizer alone."""
    data, model, root = folder / "chats.jsonl", folder / "model", folder / "root"
    write_chats(data, size)
    make_model(model, data)
    checked = in_process("check", data=str(data))
    stage = in_process("stage", model=str(model), data=str(data), ref=json.dumps(checked["ref"]), root=str(root))
    figures = {
        "data_mb": round(data.stat().st_size / 1e6, 1),
        "rows": checked["ref"]["rows"],
        "tokens": stage["tokens"],
        "cores": os.cpu_count(),
        "validate_mb_per_s": round(data.stat().st_size / 1e6 / checked["seconds"], 1),
        "peak_rss_mb": round(stage["peak_rss"] / 1e6),
    }
    if not compare:
        return figures
    alone = in_process("tokenizer", model=str(model), data=str(data))
    mega = alone["characters"] / 1e6
    return figures | {
        "tokens": alone["tokens"],
        "tokenizer_alone_mb_per_s": round(mega / alone["seconds"], 3),
        "check_stage_mb_per_s": round(mega / stage["seconds"], 3),
        "ratio": round(alone["seconds"] / stage["seconds"], 3),
        "cpu_ratio": round(alone["cpu"] / stage["cpu"], 3),
    }


PARTS = {
    "check": lambda data: measure_check(Path(data)),
    "tokenizer": lambda model, data: measure_tokenizer(Path(model), Path(data)),
    "stage": lambda model, data, ref, root: measure_stage(Path(model), Path(data), json.loads(ref), Path(root)),
}


def main() -> None:
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(PARTS[sys.argv[2]](**json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100, help="size of the data (2000 for the proof)")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--stage-only", action="store_true", help="without the tokenizer's own speed beside it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.megabytes * 1_000_000, Path(folder), compare=not options.stage_only)
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
