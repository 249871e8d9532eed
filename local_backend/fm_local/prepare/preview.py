"""What the model will see of the first rows, with the trained parts marked: for `ftctl data preview`."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from typing import Literal

from fm.data import Source, read_examples
from fm.presets import PRESETS
from fm.request import TaskType
from fm.types import ModelRef
from fm_local.models.tokenizer import PRESET_TEMPLATE, ChatTemplate, chat_template_of, load_tokenizer
from fm_local.prepare.encoding import Encoder
from fm_local.prepare.hub import fetch
from fm_local.prepare.preset_tokenizer import END_OF_TEXT
from fm_local.prepare.rendering import Rendered, Renderer
from fm_local.prepare.stage import choose_context_length, tokenizer_folder

Piece = tuple[str, bool]
"""A stretch of text, and whether it is trained."""


def preview(
    model: ModelRef | Path,
    source: Source,
    task_type: TaskType,
    *,
    train_on: Literal["last", "all"] = "last",
    context_length: int | None = None,
    rows: int = 3,
) -> list[list[Piece]]:
    """The first `rows` rows as the model sees them, each in stretches that are trained or not.

    The tokens themselves are decoded: cut to the context length, with what the tokenizer adds. A row of which nothing
    is trained is empty. A preset has no tokenizer before its run, so its rows are shown whole.

    Raises:
        RequestError: the model has no tokenizer, or its template refuses a conversation.
        DataError: one of the rows is wrong.
    """
    examples = [example for _, _, example in islice(read_examples(source, task_type), rows)]
    ref = ModelRef(kind="path", name=str(model), path=str(model)) if isinstance(model, Path) else fetch(model)
    if ref.kind == "preset" and ref.name in PRESETS:
        template = ChatTemplate(PRESET_TEMPLATE, {})
        return [_by_characters(item, task_type) for item in Renderer(template, train_on).render(examples)]

    tokenizer = load_tokenizer(tokenizer_folder(ref))
    length = choose_context_length(context_length, ref)
    source_text = chat_template_of(tokenizer) if task_type is TaskType.CHAT_COMPLETION else None
    encoder = Encoder(tokenizer, task_type, template=source_text, context_length=length)
    renderer = Renderer(ChatTemplate(source_text or "", tokenizer.special_tokens_map), train_on)
    rendered = renderer.render(examples)
    shown = []
    for item, encodings in zip(rendered, encoder.encode(rendered), strict=True):
        pieces: list[Piece] = []
        for ids, mask in encoder.finish(item, encodings).rows:
            # A stretch ends where the mask changes.
            edges = [0, *(at for at in range(1, len(ids)) if mask[at] != mask[at - 1]), len(ids)]
            pieces += [
                (str(tokenizer.decode(ids[begin:end].tolist())), bool(mask[begin]))
                for begin, end in pairwise(edges)
            ]
        shown.append(pieces)
    return shown


def _by_characters(item: Rendered, task_type: TaskType) -> list[Piece]:
    pieces: list[Piece] = []
    at = 0
    for begin, end in item.trained:
        pieces += [(item.text[at:begin], False)] if begin > at else []
        pieces.append((item.text[begin:end], True))
        at = end
    if task_type is not TaskType.CHAT_COMPLETION:
        pieces.append((END_OF_TEXT, True))
    return pieces
