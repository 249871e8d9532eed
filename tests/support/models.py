"""Tiny models of random weights, tokenised data and jobs: all that a trainer needs, made in milliseconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fm.files import seal
from fm.job import Job
from fm.layout import RunFolder, StageFolder, Storage
from fm.request import TrainRequest
from fm.types import DataRef, ModelRef
from fm_local.models.base import digest_of_base
from fm_local.prepare.extended_tokenizer import with_new_tokens
from fm_local.prepare.shards import ShardWriter, making

VOCABULARY = 259
"""256 bytes, the end of a sequence, and the two ends of a chat's turn."""
EOS, TURN, END = 256, 257, 258
CHAT_TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
Example = tuple[list[int], list[bool]]


def tokenizer(folder: Path) -> Path:
    """A tokenizer of single bytes, with a chat template, saved in `folder`."""
    byte_tokenizer(CHAT_TEMPLATE).save_pretrained(folder)
    return folder


def byte_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes with `template`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|eos|>",
        pad_token="<|eos|>",
        additional_special_tokens=["<|turn|>", "<|end|>"],
    )
    fast.chat_template = template
    assert len(fast) == VOCABULARY
    return fast


def model(
    family: str, folder: Path, *, seed: int = 3, tied: bool = False, dropout: float = 0.0, hidden: int = 32
) -> Path:
    """A model of random weights, saved in `folder`; of about 50,000 parameters, if `hidden` is left out. `family`:
    llama, qwen2, or gpt2, whose width is fixed."""
    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "tie_word_embeddings": tied,
    }
    if family == "gpt2":
        made = GPT2LMHeadModel(
            GPT2Config(
                n_positions=128,
                n_embd=32,
                n_layer=2,
                n_head=2,
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                attn_pdrop=dropout,
                **common,
            )
        )
    else:
        config, kind = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        }[family]
        made = kind(
            config(
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=2,
                num_attention_heads=hidden // 16,
                num_key_value_heads=1,
                max_position_embeddings=128,
                attention_dropout=dropout,
                **common,
            )
        )
    # Larger than the usual initialisation, so that a wrong gradient shows.
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    made.save_pretrained(folder)
    return folder


def examples(count: int, *, seed: int = 0, longest: int = 40) -> list[Example]:
    """Rows of unequal length that can be learned: a counting sequence whose second half is trained, then the end."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length, start = int(random.integers(4, longest)), int(random.integers(0, 200))
        ids = [(start + n) % 256 for n in range(length)] + [EOS]
        rows.append((ids, [n >= length // 2 for n in range(length + 1)]))
    return rows


class Rows:
    """Examples in memory, as a data set."""

    def __init__(self, rows: list[Example]) -> None:
        self._rows = rows
        self.lengths = np.array([len(ids) for ids, _ in rows])
        self.trained = np.array([sum(mask[1:]) for _, mask in rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        ids, mask = self._rows[index]
        return np.array(ids), np.array(mask)


def write_shard(storage: Storage, rows: Sequence[Example]) -> str:
    """Tokenised data as the check leaves it; returns its digest."""
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    if not storage.shard(digest).exists():
        with making(storage, digest) as temporary:
            writer = ShardWriter(temporary, vocabulary=VOCABULARY, masked=True)
            writer.write([(np.array(ids), bytes(mask)) for ids, mask in rows])
            writer.close()
            seal(temporary, dtype=str(writer.dtype))
    return digest


def make_job(
    root: Path,
    *,
    rows: Sequence[Example],
    held_out: Sequence[Example] = (),
    base: ModelRef | Path,
    attempt: int = 1,
    started_at: datetime | None = None,
    elapsed: float = 0.0,
    resume_from: Sequence[Path] = (),
    words: Path | None = None,
    **request: Any,
) -> tuple[Job, StageFolder]:
    """A job for the trainer below storage root `root`, written into its attempt's folder. `words` has the tokenizer,
    if not that of all tiny models."""
    storage = Storage(root)
    if words is None:
        words = root / "tokenizer"
        if not words.exists():
            tokenizer(words)
    data = DataRef(path="data.jsonl", digest="0", bytes=1)
    ref = base if isinstance(base, ModelRef) else ModelRef(kind="path", name=str(base), path=str(base))
    values = {
        "model": ref.name,
        "train_data_path": "data.jsonl",
        "task_type": "INSTRUCTION_FINETUNE",
        "batch_size": 4,
        "training_duration": "2ep",
        "method": "full",
        "precision": "fp32",
        "learning_rate": 1e-3,
        **request,
    }
    words, added = with_new_tokens(storage, words, values.get("new_tokens", ()))
    files = (ref.adapter_of or ref).path
    job = Job(
        stage="train",
        run_id="run-0",
        run_name="test",
        attempt=attempt,
        request=TrainRequest.build(values),
        model=ref,
        train_data=data,
        eval_data=data if held_out else None,
        storage_root=str(root),
        prepared={
            "train": {"shard": write_shard(storage, rows)},
            "eval": {"shard": write_shard(storage, held_out)} if held_out else None,
            "counts": {},
            "eval_counts": None,
            "tokenizer": str(words),
            "model_path": None if ref.kind == "preset" else ref.path,
            "base_path": ref.adapter_of.path if ref.adapter_of else None,
            "context_length": 128,
            "base_digest": digest_of_base(Path(files)) if files else None,
            "added_tokens": added,
        },
        started_at=started_at or datetime.now(UTC),
        elapsed_seconds=elapsed,
        resume_from=tuple(str(path) for path in resume_from),
    )
    folder = RunFolder(root / "runs" / "run-0").attempt(attempt)
    job.write(folder)
    return job, folder


def lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a stage's file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(folder: StageFolder, type: str) -> list[dict[str, Any]]:
    """What the trainer reported as `type`: the events' data."""
    return [line["data"] for line in lines(folder.events) if line["type"] == type]


def series(folder: StageFolder, name: str) -> list[float]:
    """The values of metric `name`, in order."""
    return [line["values"][name] for line in lines(folder.metrics) if name in line["values"]]


def run(job: Job, folder: StageFolder, **options: Any) -> bool:
    """Trains in this process. accelerate keeps its state for the whole process, so it is made to forget it."""
    from accelerate.state import AcceleratorState

    from fm_local.trainer.loop import train

    AcceleratorState._reset_state(reset_partial_state=True)
    return train(job, folder, **options)
