"""How many examples, tokens and steps the data makes: counted where it was tokenised before, else estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fm.data import Example, locate, read_examples
from fm.duration import Unit
from fm.planning import READ_ROWS
from fm.plans import PlanTask
from fm.request import TaskType, TrainRequest
from fm.types import DataRef, ModelRef
from fm_local.models.tokenizer import ChatTemplate, chat_template_of, load_tokenizer
from fm_local.prepare.encoding import Encoder
from fm_local.prepare.rendering import Renderer
from fm_local.prepare.stage import tokenizer_folder

_TOKENISED_ROWS = 200
_CHARACTERS_PER_TOKEN = 3.5


@dataclass(frozen=True, slots=True)
class Amounts:
    """The training data in tokens."""

    examples: int
    tokens: int
    longest: int
    """Tokens of the longest example."""
    trained_share: float
    """Share of the tokens that carry a label."""
    assumption: str

    @property
    def mean(self) -> float:
        return self.tokens / max(1, self.examples)


def amounts_of(task: PlanTask, context_length: int) -> Amounts:
    """Tokens of `task`'s data, from a sample of its first rows."""
    request = task.request
    source = locate(task.train_data.path, field="train_data_path")
    examples = list(islice((example for _, _, example in read_examples(source, request.task_type)), READ_ROWS))
    characters = [max(1, example.characters) for example in examples]
    rows = _rows(task.train_data, sum(characters), len(examples))
    folder = _words(task.model)
    if folder is None:
        ratio, share, overhead, count = 1 / _CHARACTERS_PER_TOKEN, 0.5, 4.0, 0
    else:
        ratio, share, overhead, count = _measured(request, folder, examples, characters)
    lengths = np.minimum(np.array(characters) * ratio + overhead, context_length)
    if request.task_type is TaskType.CONTINUED_PRETRAIN:
        # Documents are cut into rows of the context length.
        total = (sum(characters) * ratio + overhead * len(examples)) * rows / len(examples)
        row_length = min(context_length, total)
        return Amounts(
            max(1, round(total / row_length)), round(total), max(8, round(float(min(row_length, context_length)))), 1.0,
            _describe(count, len(examples), rows),
        )
    return Amounts(
        rows, round(float(lengths.mean()) * rows), max(8, round(float(lengths.max()))), share,
        _describe(count, len(examples), rows),
    )


def steps_and_tokens(request: TrainRequest, amounts: Amounts) -> tuple[int | None, int | None]:
    """Optimiser steps and tokens of a counted duration; None for a wall-clock one."""
    duration = request.duration
    per_epoch = -(-amounts.examples // request.batch_size)
    per_step = amounts.tokens / per_epoch
    if duration.unit is Unit.EPOCH:
        return duration.value * per_epoch, duration.value * amounts.tokens
    if duration.unit is Unit.BATCH:
        return duration.value, round(duration.value * per_step)
    if duration.unit is Unit.TOKEN:
        return max(1, -(-duration.value // max(1, round(per_step)))), duration.value
    return None, None


def _measured(
    request: TrainRequest, folder: Path, examples: Sequence[Example], characters: Sequence[int]
) -> tuple[float, float, float, int]:
    """Tokens for each character, share that is trained, tokens that every row has beside its text, rows tokenised."""
    tokenizer = load_tokenizer(folder)
    template = chat_template_of(tokenizer) if request.task_type is TaskType.CHAT_COMPLETION else None
    encoder = Encoder(tokenizer, request.task_type, template=template, context_length=1 << 20)
    renderer = Renderer(ChatTemplate(template or "", tokenizer.special_tokens_map), request.train_on)
    chosen = sorted(set(np.linspace(0, len(examples) - 1, _TOKENISED_ROWS).astype(int).tolist()))
    rendered = renderer.render([examples[index] for index in chosen])
    tokens, trained = [], 0
    for item, encodings in zip(rendered, encoder.encode(rendered), strict=True):
        rows = encoder.finish(item, encodings).rows
        tokens.append(sum(len(ids) for ids, _ in rows))
        trained += sum(mask.count(1, 1) for _, mask in rows)
    lengths = np.array(tokens, dtype=float)
    sizes = np.array([characters[index] for index in chosen], dtype=float)
    ratio, overhead = 0.0, 0.0
    if sizes.std() > 0 and len(chosen) > 2:
        ratio, overhead = np.polyfit(sizes, lengths, 1)
    if ratio <= 0 or overhead < 0:
        ratio, overhead = lengths.sum() / sizes.sum(), 0.0
    return float(ratio), trained / max(1.0, float(lengths.sum())), float(overhead), len(chosen)


def _rows(data: DataRef, characters: int, read: int) -> int:
    if data.rows is not None:
        return data.rows
    return read if read < READ_ROWS else max(read, round(data.bytes / max(1, characters) * read))


def _words(model: ModelRef) -> Path | None:
    """The folder of the model's tokenizer, if it is here; a preset's is made from the data at the run's beginning."""
    if model.kind == "preset" or not (model.path or (model.adapter_of and model.adapter_of.path)):
        return None
    return tokenizer_folder(model)


def _describe(tokenised: int, read: int, rows: int) -> str:
    how = f"{tokenised} rows tokenised"
    if not tokenised:
        how = f"{_CHARACTERS_PER_TOKEN} characters a token, for want of a tokenizer"
    return f"tokens estimated by characters: {how}, the first {read:,} of {rows:,} rows looked at"
