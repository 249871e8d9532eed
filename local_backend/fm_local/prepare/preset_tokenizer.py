"""A tokenizer for a preset: byte-level BPE trained on the run's own data, so that nothing has to be downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fm.data import Chat, Example, Instruction, Source, read_examples
from fm.files import read_manifest, seal
from fm.layout import Storage
from fm.presets import Preset
from fm.request import TaskType
from fm.types import DataRef
from fm_local.models.tokenizer import PRESET_TEMPLATE
from fm_local.prepare.shards import digest_of, making

END_OF_TEXT, TURN_BEGINS, TURN_ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_SAMPLE_BYTES = 64 << 20
"""Of larger data, every n-th row is taken: training holds each different word in memory."""


def train_tokenizer(storage: Storage, preset: Preset, source: Source, data: DataRef, task_type: TaskType) -> Path:
    """The folder with the tokenizer of `preset` for this data, trained unless it is there already.

    It has at most `preset.vocab_size` tokens (fewer if the data has no more pairs to merge), loses no byte of any
    text, ends texts with ``<|endoftext|>`` and chat turns with ``<|im_end|>``.
    """
    digest = digest_of(kind="tokenizer", data=data.digest, task_type=task_type.value, vocab_size=preset.vocab_size)
    folder = storage.shard(digest)
    if read_manifest(folder) is None:
        with making(storage, digest) as unfinished:
            _save(_train(preset.vocab_size, _sample(source, data, task_type)), preset, unfinished)
            seal(unfinished, kind="tokenizer")
    return folder


def _sample(source: Source, data: DataRef, task_type: TaskType) -> Iterator[str]:
    every = -(-data.bytes // _SAMPLE_BYTES) or 1
    for number, (_, _, example) in enumerate(read_examples(source, task_type)):
        if number % every == 0:
            yield from _texts(example)


def _texts(example: Example) -> Iterator[str]:
    if isinstance(example, Chat):
        for message in example.messages:
            yield f"{message['role']}\n{message['content']}"
    elif isinstance(example, Instruction):
        yield example.prompt + example.response
    else:
        # A limit of the trainer, not of the text: it takes each string as a whole.
        for begin in range(0, len(example.text), 1 << 20):
            yield example.text[begin : begin + (1 << 20)]


def _train(vocab_size: int, texts: Iterator[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, TURN_BEGINS, TURN_ENDS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _save(tokenizer: Any, preset: Preset, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_BEGINS, TURN_ENDS],
        chat_template=PRESET_TEMPLATE,
        model_max_length=preset.max_context_length,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
