"""How long a plan takes for an 8B Llama, LoRA and full, none of whose weights exist. Prints and writes JSON.

    python benchmarks/plan_speed.py --out benchmarks/results/plan_speed.json

`process_s` is `ftctl plan`, from its start to its end, and `process_short_s` one of full training for a GPU that holds
none, which is traced with fewer rows and checkpointed too; `first_s` is `fm.plan` in a process that has imported torch
and transformers, and imports the rest; `next_s` a second call, as in a server that has planned before. Wall-clock and
processor seconds, medians of REPEATS.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 3
PARAMETERS = 8_030_261_248
COMMON = ("--task-type", "INSTRUCTION_FINETUNE", "--device", "H200")
SHORT = ("--method", "full", "--device", "RTX 4090")
ONE = """
import json, sys, time
import fm, fm_local.plan.planning
times = []
for _ in range(2):
    wall, cpu = time.perf_counter(), time.process_time()
    fm.plan(*sys.argv[1:3], task_type="INSTRUCTION_FINETUNE", device="H200")
    times.append((time.perf_counter() - wall, time.process_time() - cpu))
print(json.dumps(times))
"""


def write_base(folder: Path) -> Path:
    """The configuration of an 8B Llama, and weights that are a hole in a sparse file."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192,
    ).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(dict.fromkeys(("<unk>", "</s>"), 0) | {"</s>": 1}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>",
        chat_template="{% for m in messages %}{{ m.content }}</s>{% endfor %}",
    ).save_pretrained(folder)
    tensor = {"dtype": "BF16", "shape": [PARAMETERS], "data_offsets": [0, 2 * PARAMETERS]}
    header = json.dumps({"w": tensor}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * PARAMETERS)
    return folder


def processor_seconds() -> float:
    """What processes that have ended have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    wall, cpu = time.perf_counter(), processor_seconds()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - wall, processor_seconds() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ.update(FM_HOME=f"{name}/home", FM_AGENT="off")
        base, data = write_base(Path(name)), Path(name) / "train.jsonl"
        rows = ({"prompt": "why " * (n % 90 + 1), "response": "so " * (n % 50 + 1)} for n in range(1200))
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = []
        for _ in range(REPEATS):
            python, paths = [sys.executable, "-W", "ignore"], [str(base), str(data)]
            command = [*python, "-m", "fm.cli.main", "plan", *paths, *COMMON]
            whole, short = timed(command), timed([*command, *SHORT])
            answer = subprocess.run([*python, "-c", ONE, *paths], check=True, capture_output=True).stdout
            first, after = json.loads(answer)
            found.append([*whole, *short, *first, *after])
    names = [f"{what}_{unit}" for what in ("process", "process_short", "first", "next") for unit in ("s", "cpu_s")]
    figures = {n: round(statistics.median(v), 2) for n, v in zip(names, zip(*found, strict=True), strict=True)}
    print(json.dumps(figures))
    if options.out:
        options.out.write_text(json.dumps(figures | {"repeats": REPEATS}, indent=1) + "\n")


if __name__ == "__main__":
    main()
