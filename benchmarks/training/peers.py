"""TRL's `SFTTrainer` and Hugging Face's `Trainer`: ``python -m training.peers RESULT SPEC``, in the peers' environment.

``options`` are the trainer's own arguments, besides: ``trainer`` ("trl" or "hf"), ``attention`` (an implementation of
transformers; None for its choice), ``dtype`` (of the loaded base; None for the trainer's choice).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from training.clock import Result, Step, peak_bytes
from training.task import LEARNING, LORA, tokenize_row


class Watch(TrainerCallback):
    """Notes the end of each step, and what the trainer's `training_step` was given."""

    def __init__(self, result: Result, rows: int, tokens: int) -> None:
        self.result, self.rows, self.total = result, rows, tokens
        self.seen = 0
        self.tokens: Any = 0
        self.loss: Any = 0.0

    def wrap(self, trainer: Trainer) -> None:
        """Counts real tokens and sums up the loss of each micro-batch on its way into `trainer`."""
        inner = trainer.training_step

        def training_step(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            mask = inputs.get("attention_mask")
            # Kept as tensors, so that a GPU is not waited for.
            self.tokens = self.tokens + (mask.sum() if mask is not None else inputs["input_ids"].numel())
            loss = inner(model, inputs, *more, **named)
            self.loss = self.loss + loss
            return loss

        trainer.training_step = training_step  # type: ignore[method-assign]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        tokens = int(self.tokens)
        self.seen += tokens
        # Where rows are packed, the examples of a step are known by their share of the tokens only.
        examples = self.rows * self.seen / self.total
        self.result.steps.append(Step(time.time(), tokens, examples, float(self.loss), time.process_time()))
        self.result.peak_bytes = peak_bytes()
        self.tokens, self.loss = 0, 0.0


def _arguments(spec: dict[str, Any], options: dict[str, Any], out: Path) -> dict[str, Any]:
    beta1, beta2 = LEARNING["betas"]
    return {
        "output_dir": str(out), "max_steps": spec["steps"] or -1, "num_train_epochs": 1,
        "seed": spec["seed"], "report_to": "none",
        "learning_rate": LEARNING["rates"][spec["method"]], "lr_scheduler_type": "linear", "warmup_steps": 0.02,
        "adam_beta1": beta1, "adam_beta2": beta2, "max_grad_norm": LEARNING["clip"], "weight_decay": 0.0,
        "save_strategy": "steps" if spec["save_at"] else "no", "save_steps": spec["save_at"] or 500,
        "disable_tqdm": True, "logging_steps": 10, "use_cpu": spec["device"] == "cpu",
        **options,
    }  # fmt: skip


def _load(spec: dict[str, Any], attention: str | None, dtype: str | None) -> Any:
    more: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if spec["method"] == "full":  # large bases are saved in bf16, of which all others train fp32 copies
        dtype = dtype or "float32"
    more |= {"dtype": getattr(torch, dtype)} if dtype else {}
    if spec["method"] == "qlora":
        from transformers import BitsAndBytesConfig

        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(spec["model"], **more)


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=LORA["rank"], lora_alpha=LORA["alpha"], lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def make_trl(spec: dict[str, Any], rows: list[dict[str, str]], tokenizer: Any, model: Any, out: Path) -> Trainer:
    """TRL's trainer on rows of text, which it tokenises itself."""
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"prompt": row["prompt"], "completion": row["response"]} for row in rows])
    return SFTTrainer(
        model=model, args=SFTConfig(**_arguments(spec, spec["options"], out)), train_dataset=data,
        processing_class=tokenizer, peft_config=None if spec["method"] == "full" else _lora(),
    )  # fmt: skip


def make_hf(spec: dict[str, Any], rows: list[dict[str, str]], tokenizer: Any, model: Any, out: Path) -> Trainer:
    """Hugging Face's trainer on rows tokenised by `datasets.map`, with transformers' collator for labels."""
    from transformers import DataCollatorForSeq2Seq

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        ids, prompt = tokenize_row(tokenizer, row)
        return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}

    data = Dataset.from_list(rows).map(encode, remove_columns=["prompt", "response"])
    if spec["method"] != "full":
        from peft import get_peft_model

        model = get_peft_model(model, _lora())
    arguments = _arguments(spec, spec["options"] | {"bf16": spec["precision"] == "bf16"}, out)
    return Trainer(
        model=model, args=TrainingArguments(**arguments), train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip


def main(result_path: Path, spec: dict[str, Any]) -> None:
    result, options = Result(started=spec["started"]), dict(spec["options"])
    kind, attention, dtype = (options.pop(name, None) for name in ("trainer", "attention", "dtype"))
    spec = spec | {"options": options}
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    rows = [json.loads(line) for line in Path(spec["data"]).read_text().splitlines()]
    out = result_path.with_suffix(".out")
    model = _load(spec, attention, dtype)
    begin = time.perf_counter()
    trainer = (make_trl if kind == "trl" else make_hf)(spec, rows, tokenizer, model, out)
    result.prepare_s = time.perf_counter() - begin
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    if not options.get("packing") and sum(lengths) != spec["tokens"]:
        raise SystemExit(f"{kind} has {sum(lengths)} tokens where ftctl has {spec['tokens']}: not the same data")
    watch = Watch(result, len(rows), sum(lengths))
    watch.wrap(trainer)
    trainer.add_callback(watch)
    if spec["save_at"]:
        trainer._save_checkpoint = result.timing_saves(trainer._save_checkpoint)  # type: ignore[method-assign]
        result.checkpoint = str(out / f"checkpoint-{spec['save_at']}")
    trainer.train(resume_from_checkpoint=spec["resume"])
    trainer.save_model(str(out / "final"))
    result.weights = str(out / "final")
    result.write(result_path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
