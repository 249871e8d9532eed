"""The main job, from nothing to a tuned model, through the public API only. `make demo` runs it; minutes on two cores.

1. Build real data from the docstrings of Python's standard library.
2. Pretrain a tiny Llama of random weights on the text, and register it as ``demo.python.base``.
3. Fine-tune that model with LoRA on questions and answers, and register the adapter as ``demo.python.qa``.
4. Compare, on held-out questions, the base with the tuned model.

It ends with exit code 1 if a figure misses what is promised of it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import stdlib_data
from rich.console import Console
from rich.table import Table

import fm

DEMO = Path(__file__).resolve().parent.parent / ".demo"
DATA = DEMO / "data"
CONTEXT = 256
"""Tokens of the longest training example."""
QUESTIONS = 50
ANSWER_TOKENS = 100
EVAL_LOSS = "metrics/eval/LanguageCrossEntropy"

console = Console(highlight=False)


def main() -> int:
    """Runs the demo; returns the exit code."""
    os.environ.setdefault("FM_HOME", str(DEMO / "home"))
    began = time.monotonic()

    console.rule("1. Data from the docstrings of the standard library")
    for name, count in stdlib_data.build(DATA).items():
        console.print(f"{count:7,}  {(DATA / name).relative_to(DEMO.parent)}")

    console.rule("2. Pretraining a tiny Llama of random weights on the text")
    base = fm.create(
        model="fm/tiny-llama",
        train_data_path=DATA / "text",
        eval_data_path=DATA / "text-heldout",
        task_type="CONTINUED_PRETRAIN",
        method="full",
        training_duration="650_000tok",
        learning_rate=3e-3,
        batch_size=4,
        context_length=CONTEXT,
        eval_interval="250ba",
        save_interval="250ba",
        register_to="demo.python.base",
        name="demo-base",
    ).wait()
    show(base)

    console.rule("3. Fine-tuning it with LoRA on questions and answers")
    tuned = fm.create(
        model="demo.python.base",
        train_data_path=DATA / "pairs.jsonl",
        eval_data_path=DATA / "pairs-heldout.jsonl",
        task_type="INSTRUCTION_FINETUNE",
        training_duration="250_000tok",
        learning_rate=5e-3,
        batch_size=8,
        context_length=CONTEXT,
        eval_interval="200ba",
        save_interval="200ba",
        register_to="demo.python.qa",
        name="demo-qa",
    ).wait()
    show(tuned)

    console.rule("4. Before and after, on held-out questions")
    rows = [json.loads(line) for line in (DATA / "pairs-heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = rows[:: max(1, len(rows) // QUESTIONS)][:QUESTIONS]
    base_model = fm.load(base)
    before = answer(base_model, [row["prompt"] for row in rows])
    after = answer(fm.load(tuned), [row["prompt"] for row in rows])
    for row, old, new in list(zip(rows, before, after, strict=True))[:: QUESTIONS // 5]:
        console.print(f"\n[bold]{row['prompt'].strip()}[/bold]", soft_wrap=True)
        for label, text in (("base", old.text), ("tuned", new.text), ("documented", row["response"])):
            console.print(f"  {label:<11}{json.dumps(text[:90], ensure_ascii=False)}", markup=False, soft_wrap=True)

    console.rule("Figures, all on held-out data")
    losses = [value for _, value in tuned.metrics(EVAL_LOSS).series(EVAL_LOSS)]
    text_loss = base.metrics(EVAL_LOSS).series(EVAL_LOSS)[-1][1]
    references = [row["response"] for row in rows]
    met = table(
        Figures(
            unigram=unigram_loss(base_model.tokenizer),
            text_loss=text_loss,
            pairs_before=losses[0],
            pairs_after=losses[-1],
            ended_before=share_ended(before),
            ended_after=share_ended(after),
            chrf_before=chrf(before, references),
            chrf_after=chrf(after, references),
        )
    )
    for run in (base, tuned):
        for name, digest in weights(run).items():
            console.print(f"weights of {run.registered_model}: {digest}  {name}", soft_wrap=True)
    tell_the_rest(base, tuned, time.monotonic() - began)
    return 0 if met else 1


def show(run: fm.Run) -> None:
    """The loss curves of a run that has ended, here and as a picture."""
    run.plot()
    run.plot(DEMO / f"{run.name}.png")


def weights(run: fm.Run) -> dict[str, str]:
    """SHA-256 of each file of weights that the run registered: the same wherever the same versions trained it."""
    files = run.backend.models.get(run.registered_model).files
    return {name: digest for name, digest in files.items() if name.endswith(".safetensors")}


@dataclass
class Answer:
    """What a model wrote; `ended` if it stopped by itself."""

    text: str
    ended: bool


def answer(model: Any, prompts: list[str]) -> list[Answer]:
    """The likeliest token each time, at most `ANSWER_TOKENS`. `fm.load` gives a transformers model and its tokenizer,
    so all prompts can be answered at once; for a single one there is ``model.generate(prompt)``."""
    tokenizer = model.tokenizer
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    output = model.model.generate(
        **inputs.to(model.model.device),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    written = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [
        Answer(tokenizer.decode(tokens, skip_special_tokens=True), tokenizer.eos_token_id in tokens)
        for tokens in written
    ]


def share_ended(answers: list[Answer]) -> float:
    """Of `answers`, the share that ended by themselves."""
    return sum(answer.ended for answer in answers) / len(answers)


def chrf(answers: list[Answer], references: list[str]) -> float:
    """Overlap in character 6-grams with the references, 0 to 100 (Popović, 2015)."""
    from sacrebleu import corpus_chrf

    return float(corpus_chrf([answer.text for answer in answers], [references]).score)


def unigram_loss(tokenizer: Any) -> float:
    """Nats per token, on the held-out text, of a model that knows only how frequent each token is in the training text
    (add-one smoothing). Counted over the tokens that the run is evaluated on: those that follow another one."""

    def rows(folder: str) -> list[list[int]]:
        pieces = []
        for path in sorted((DATA / folder).glob("*.txt")):
            ids = [*tokenizer.encode(path.read_text(encoding="utf-8"), verbose=False), tokenizer.eos_token_id]
            pieces += [part.tolist() for part in np.array_split(ids, math.ceil(len(ids) / CONTEXT))]
        return pieces

    counts = Counter(token for row in rows("text") for token in row)
    total = sum(counts.values()) + len(tokenizer)
    predicted = [token for row in rows("text-heldout") for token in row[1:]]
    return -sum(math.log((counts[token] + 1) / total) for token in predicted) / len(predicted)


@dataclass
class Figures:
    """What the demo measured. Losses in nats per token, shares from 0 to 1, chrF from 0 to 100."""

    unigram: float
    text_loss: float
    pairs_before: float
    pairs_after: float
    ended_before: float
    ended_after: float
    chrf_before: float
    chrf_after: float


def table(it: Figures) -> bool:
    """Shows the figures beside what is promised. Returns whether every promise is kept."""
    checks = (
        ("text: loss of the unigram model → base", f"{it.unigram:.2f} → {it.text_loss:.2f}", "0.5 lower",
         it.text_loss <= it.unigram - 0.5),
        ("answers: loss, base → tuned", f"{it.pairs_before:.2f} → {it.pairs_after:.2f}", "15 % lower",
         it.pairs_after <= 0.85 * it.pairs_before),
        ("answers of the base that end by themselves", f"{it.ended_before:.0%}", "under 20 %", it.ended_before < 0.2),
        ("answers of the tuned model that do", f"{it.ended_after:.0%}", "80 % or more", it.ended_after >= 0.8),
        ("answers: chrF, base → tuned", f"{it.chrf_before:.1f} → {it.chrf_after:.1f}", "higher",
         it.chrf_after > it.chrf_before),
    )  # fmt: skip
    shown = Table("figure", "measured", "promised", "kept")
    for what, measured, promised, kept in checks:
        shown.add_row(what, measured, promised, "yes" if kept else "[bold red]NO[/bold red]")
    console.print(shown)
    missed = [f"{what}: {measured}, promised: {promised}" for what, measured, promised, kept in checks if not kept]
    for line in missed:
        print(f"demo: missed: {line}", file=sys.stderr)
    return not missed


def tell_the_rest(base: fm.Run, tuned: fm.Run, seconds: float) -> None:
    """Where everything lies, what this model can't do, and what to try next."""
    ftctl = Path(sys.executable).with_name("ftctl")
    here = [name for name in ("FM_HOME", "FM_BACKEND") if name in os.environ]
    settings = " ".join(f"{name}={os.environ[name]}" for name in here)
    console.print(f"""
This took {seconds:.0f} s. The model has under a million weights and has read a megabyte: it has learnt how an answer
looks and when to stop, and little of what is true. For answers to rely on, start from a model that was trained on
far more, with the same call: fm.create(model="org/name", …).

Where things are:
  data            {DATA}
  loss curves     {DEMO / base.name}.png, {DEMO / tuned.name}.png
  runs            {base.save_folder or base.id}
                  {tuned.save_folder or tuned.id}
  models          {base.registered_model} and {tuned.registered_model}, kept by {tuned.backend.name}

What to try next:
  export {settings} PATH={ftctl.parent}:$PATH
  ftctl runs list
  ftctl runs events {tuned.name}
  ftctl models try demo.python.qa --complete $'What does json.dumps do?\\n'
  ftctl models export demo.python.qa {DEMO / "qa"} --merge
  ftctl data preview {DATA / "chats.jsonl"} demo.python.base
  ftctl create demo.python.base {DATA / "chats.jsonl"} --duration 1m --register-to demo.python.chat --follow
""", markup=False, soft_wrap=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
