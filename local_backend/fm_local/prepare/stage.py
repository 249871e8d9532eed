"""What the check stage does, from a job to what training needs of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fm.data import Chat, Example, Source, locate, read_examples, verify
from fm.errors import DataError, DataFault, RequestError
from fm.files import read_manifest, seal
from fm.job import Job
from fm.layout import Storage
from fm.presets import PRESETS
from fm.request import TaskType, TrainRequest
from fm.resolve import context_length_of, refuse_quantised
from fm.types import DataCounts, DataRef, ModelRef
from fm_local.models.base import check_base, digest_of_base
from fm_local.models.tokenizer import ChatTemplate, chat_template_of, load_tokenizer
from fm_local.prepare.encoding import Encoder, encode_all
from fm_local.prepare.extended_tokenizer import with_new_tokens
from fm_local.prepare.hub import fetch
from fm_local.prepare.preset_tokenizer import train_tokenizer
from fm_local.prepare.rendering import Rendered, Renderer
from fm_local.prepare.shards import ShardWriter, digest_of, making

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_CHARACTERS = 1 << 19
_BATCH_EXAMPLES = 1024
_NAMED_ROWS = 5
"""Rows that a warning names."""

Warn = Callable[[str, dict[str, Any]], None]
Place = tuple[str, int]


def prepare(job: Job, warn: Warn) -> dict[str, Any]:
    """Makes all that training needs of the data, and returns the data of the CHECK_PASSED event.

    Keys: `train` and `eval` (``{"shard": digest}``, `eval` may be None), `counts`, `eval_counts`, `tokenizer` (folder),
    `model_path` (None for a preset), `base_path` (of an adapter's base, else None), `context_length`, `base_digest` (of
    the base's files; None for a preset), `added_tokens` (of `new_tokens`, those that the tokenizer lacked).

    Raises:
        FMError: the data changed, can't be tokenised for this model, or leaves nothing to train on.
    """
    request, storage = job.request, Storage(Path(job.storage_root))
    train = locate(job.train_data.path, field="train_data_path")
    verify(train, job.train_data)
    held_out = locate(job.eval_data.path, field="eval_data_path") if job.eval_data else None
    if held_out and job.eval_data:
        verify(held_out, job.eval_data)

    model = fetch(job.model)
    refuse_quantised(model)
    base_digest = _digest_of_base(model)
    preset = PRESETS.get(model.name) if model.kind == "preset" else None
    if preset:
        folder = train_tokenizer(storage, preset, train, job.train_data, request.task_type)
    else:
        folder = tokenizer_folder(model)
    folder, added_tokens = with_new_tokens(storage, folder, request.new_tokens)
    context_length = choose_context_length(request.context_length, model)
    shards = _Shards(storage, request, load_tokenizer(folder), context_length, warn)
    counts = shards.make("train", train, job.train_data)
    eval_counts = shards.make("eval", held_out, job.eval_data) if held_out and job.eval_data else None
    return {
        "train": {"shard": shards.made["train"]},
        "eval": {"shard": shards.made["eval"]} if eval_counts else None,
        "counts": counts.model_dump(),
        "eval_counts": eval_counts.model_dump() if eval_counts else None,
        "tokenizer": str(folder),
        "model_path": model.path,
        "base_path": model.adapter_of.path if model.adapter_of else None,
        "context_length": context_length,
        "base_digest": base_digest,
        "added_tokens": added_tokens,
    }


def _digest_of_base(model: ModelRef) -> str | None:
    """The digest of the base's files; None for a preset.

    Raises:
        RequestError: `model` is an adapter that was trained on other files.
    """
    base = model.adapter_of or model
    if not base.path:
        return None
    if model.adapter_of and model.path:
        return check_base(Path(model.path), Path(base.path))
    return digest_of_base(Path(base.path))


def tokenizer_folder(model: ModelRef) -> Path:
    """Where the tokenizer of `model` lies: with its weights, or for an adapter without one, with its base's."""
    folders = [Path(ref.path) for ref in (model, model.adapter_of) if ref and ref.path]
    with_one = [folder for folder in folders if (folder / "tokenizer_config.json").is_file()]
    return [*with_one, *folders][0]


def choose_context_length(asked: int | None, model: ModelRef) -> int:
    """Tokens of the longest example: what was asked for, else the model's own limit.

    Raises:
        RequestError: more than the model's own, or neither is known.
    """
    most = context_length_of(model)
    if asked is None and most is None:
        raise RequestError(
            f"the configuration of {model.name} does not say how long its context is",
            field="context_length", hint="pass context_length=…",
        )
    if asked is not None and most is not None and asked > most:
        raise RequestError(
            f"context_length {asked} is more than the {most} tokens that {model.name} can attend to",
            field="context_length", hint=f"use {most} at most",
        )
    return int(asked or most or 0)


class _Shards:
    """Makes the shards of one run. `made` has their digests by part, "train" and "eval"."""

    def __init__(
        self,
        storage: Storage,
        request: TrainRequest,
        tokenizer: PreTrainedTokenizerBase,
        context_length: int,
        warn: Warn,
    ) -> None:
        self._storage = storage
        self._task_type = request.task_type
        self._context_length = context_length
        self._warn = warn
        self._vocabulary = len(tokenizer)
        template = chat_template_of(tokenizer) if request.task_type is TaskType.CHAT_COMPLETION else None
        self._renderer = Renderer(ChatTemplate(template or "", tokenizer.special_tokens_map), request.train_on)
        self._encoder = Encoder(tokenizer, request.task_type, template=template, context_length=context_length)
        self._parts = {
            "task_type": request.task_type.value,
            "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "eos": tokenizer.eos_token_id,
            "template": template,
            "train_on": request.train_on,
            "context_length": context_length,
        }
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self.made: dict[str, str] = {}

    def make(self, part: str, source: Source, data: DataRef) -> DataCounts:
        """Tokenises `source` unless that was done before, and says what became of its rows."""
        digest = self.made[part] = digest_of(kind="tokens", data=data.digest, **self._parts)
        manifest = read_manifest(self._storage.shard(digest))
        if manifest is None:
            with making(self._storage, digest) as unfinished:
                manifest = seal(unfinished, **self._tokenise(source, data, unfinished))
        counts = DataCounts.model_validate(manifest["counts"])
        amounts = {"imitating": manifest["imitating"], "truncated": counts.truncated, "dropped": counts.dropped}
        self._warn_about(part, source, amounts, manifest["named"])
        return counts

    def _tokenise(self, source: Source, data: DataRef, folder: Path) -> dict[str, Any]:
        masked = self._task_type is not TaskType.CONTINUED_PRETRAIN
        writer = ShardWriter(folder, vocabulary=self._vocabulary, masked=masked)
        named: dict[str, list[str]] = {"truncated": [], "dropped": [], "imitating": []}
        amounts = dict.fromkeys(named, 0)

        def note(what: str, place: Place) -> None:
            amounts[what] += 1
            if len(named[what]) < _NAMED_ROWS:
                named[what].append(f"{place[0]}:{place[1]}")

        def look(example: Example, place: Place) -> None:
            if isinstance(example, Chat) and any(self._special.search(said["content"]) for said in example.messages):
                note("imitating", place)

        batches = _batches(source, self._task_type, self._renderer, data, look)
        for places, encoded in encode_all(self._encoder, batches):
            writer.write([row for item in encoded for row in item.rows])
            for place, item in zip(places, encoded, strict=True):
                if not item.rows:
                    note("dropped", place)
                elif item.truncated:
                    note("truncated", place)
        writer.close()
        if not writer.examples:
            raise DataError(
                f"{source.name}: within {self._context_length} tokens, no row has anything left to train on",
                hint="raise context_length, or shorten the prompts",
            )
        imitating = amounts.pop("imitating")
        counts = DataCounts(
            examples=writer.examples, tokens=writer.tokens, trained_tokens=writer.trained_tokens, **amounts
        )
        return {
            "kind": "tokens",
            "dtype": writer.dtype.name,
            "counts": counts.model_dump(),
            "imitating": imitating,
            "named": named,
        }

    def _warn_about(self, part: str, source: Source, amounts: dict[str, int], named: dict[str, list[str]]) -> None:
        effects = {
            "imitating": "writing one of the model's special tokens as text, which the model takes for the token "
            "itself, such as the end of a turn",
            "truncated": f"cut to {self._context_length} tokens, so that the model does not see where they end",
            "dropped": f"dropped: within {self._context_length} tokens nothing of them is trained",
        }
        for what, effect in effects.items():
            if amount := amounts[what]:
                rows = "1 row is" if amount == 1 else f"{amount} rows are"
                message = f"{source.name}: {rows} {effect} (the first: {', '.join(named[what])})"
                self._warn(message, {"part": part, what: amount, "rows": named[what]})


def _batches(
    source: Source, task_type: TaskType, renderer: Renderer, data: DataRef, look: Callable[[Example, Place], None]
) -> Iterator[tuple[list[Place], list[Rendered]]]:
    places: list[Place] = []
    examples: list[Example] = []
    size = 0
    for file, line, example in read_examples(source, task_type, recorded=data):
        places.append((file, line))
        look(example, (file, line))
        examples.append(example)
        size += example.characters
        if size >= _BATCH_CHARACTERS or len(examples) >= _BATCH_EXAMPLES:
            yield places, _render(renderer, examples, places)
            places, examples, size = [], [], 0
    if examples:
        yield places, _render(renderer, examples, places)


def _render(renderer: Renderer, examples: list[Example], places: list[Place]) -> list[Rendered]:
    try:
        return renderer.render(examples)
    except RequestError as error:
        for example, (file, line) in zip(examples, places, strict=True):
            try:
                renderer.render([example])
            except RequestError as own:
                fault = DataFault(file, line, "messages", own.message, own.hint or "change the conversation")
                raise DataError(f"{file}: the chat template can't render a row", faults=[fault]) from error
        raise
