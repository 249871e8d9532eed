"""Opening tokenizers, and the chat template by which conversations become text.

A tokenizer without a template of its own gets ChatML whose turns end in the tokenizer's own end-of-sequence token:
``<|im_start|>assistant\\n…</s>\\n``. That needs no new tokens, and so no new embedding rows that a LoRA adapter would
have to train and save, and what already stops the model stops it at the end of its turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fm.errors import RequestError, Unsupported
from fm_local.models.template_proof import only_writes_contents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATML = (
    "{{% for message in messages %}}"
    "{{{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + {end} + '\\n' }}}}"
    "{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}"
)
"""ChatML; `end` is a Jinja expression for what ends a turn."""

PRESET_TEMPLATE = CHATML.format(end="'<|im_end|>'")
"""The template of tokenizers trained for presets: ChatML as it is known, its turns ending in ``<|im_end|>``."""
_FALLBACK = CHATML.format(end="eos_token")
_FALLBACK_BOS = "{{ bos_token }}" + _FALLBACK
Message = dict[str, Any]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`. Reads local files only, and runs no code of the model's own.

    Raises:
        RequestError: there is none, or it has no end-of-sequence token.
        Unsupported: it needs code of the model's own, or has no fast implementation, whose offsets the masks need.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        if "trust_remote_code" in str(error):
            raise Unsupported(
                f"the tokenizer in {folder} needs code of its own, which is never run", field="model",
                hint="use a model whose tokenizer transformers has built in",
            ) from None
        raise RequestError(
            f"no tokenizer can be read from {folder}: {reason}", field="model",
            hint="the folder needs tokenizer.json and tokenizer_config.json, as save_pretrained(…) writes them",
        ) from None
    if not tokenizer.is_fast:
        raise Unsupported(
            f"the tokenizer in {folder} has no fast implementation", field="model",
            hint="convert it to a tokenizer.json with transformers, and put that into the folder",
        )
    if tokenizer.eos_token_id is None:
        raise RequestError(
            f"the tokenizer in {folder} has no end-of-sequence token, so a model could never learn to stop",
            field="model", hint='set "eos_token" in its tokenizer_config.json',
        )
    return tokenizer


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The model's own chat template, else ChatML with the tokenizer's own end-of-sequence token ending each turn.

    Text that it renders is tokenised with ``add_special_tokens=False``: the template writes the beginning-of-sequence
    token itself, once.
    """
    if isinstance(tokenizer.chat_template, dict) and "default" in tokenizer.chat_template:
        return str(tokenizer.chat_template["default"])
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template
    begins = added_ids(tokenizer)[0] and tokenizer.bos_token
    return _FALLBACK_BOS if begins else _FALLBACK


def added_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer itself puts before and behind a text."""
    bare = tokenizer.encode("x", add_special_tokens=False)
    whole = tokenizer.encode("x", add_special_tokens=True)
    start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> list[int]:
    """The ids that end a generation: end of sequence, and what ends an assistant's turn in `template`."""
    assert tokenizer.eos_token_id is not None, "load_tokenizer refuses those without"
    stops = [int(tokenizer.eos_token_id)]
    if template is not None:
        end = ChatTemplate(template, tokenizer.special_tokens_map).turn_end()
        ids = tokenizer.encode(end, add_special_tokens=False) if end else []
        if ids and ids[0] in tokenizer.added_tokens_decoder and ids[0] not in stops:
            stops.append(ids[0])
    return stops


class ChatTemplate:
    """A chat template as `tokenizer.apply_chat_template` would render it, usable before there is a tokenizer.

    Args:
        text: the Jinja source.
        special_tokens: what it may refer to, such as ``{"bos_token": "<s>"}``.
    """

    def __init__(self, text: str, special_tokens: Mapping[str, Any]) -> None:
        self.text = text
        self._special = {name: str(token) for name, token in special_tokens.items() if isinstance(name, str)}
        self.joints = _learn(self)
        self._is_plain = only_writes_contents(text)
        self._composable: dict[tuple[str, ...], bool] = {}

    def render(self, messages: Sequence[Message], tools: list[Any] | None = None, *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, up to where the assistant's next answer begins.

        Raises:
            RequestError: the template refuses the conversation.
        """
        return self.render_batch([messages], tools, prompt=prompt)[0]

    def turn_end(self) -> str:
        """What ends an assistant's turn, without white space around it: ``<|im_end|>``; empty where nothing does."""
        if self.joints:
            return self.joints.turn_end.strip()
        # A template that rewrites earlier turns (Qwen 3) still ends the last one.
        try:
            text = self.render(_TURNS[:2])
        except RequestError:
            return ""
        return text.rpartition(_TURNS[1]["content"])[2].strip()

    def writes(self, messages: Sequence[Message]) -> bool:
        """Whether it is certain, without rendering, that `joints` compose the text of `messages`."""
        if not self._is_plain or not self.joints or any(len(message) != 2 for message in messages):
            return False
        roles = tuple(message["role"] for message in messages)
        if roles not in self._composable:
            probe = [{"role": role, "content": f"q7f{index}."} for index, role in enumerate(roles)]
            composed = self.joints.compose(probe)
            try:
                self._composable[roles] = composed is not None and composed[0] == self.render(probe)
            except RequestError:
                self._composable[roles] = False
        return self._composable[roles]

    def render_batch(
        self, conversations: Sequence[Sequence[Message]], tools: list[Any] | None = None, *, prompt: bool = False
    ) -> list[str]:
        """Several conversations at once, which is quicker."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template(
                conversations=conversations, tools=tools, chat_template=self.text, add_generation_prompt=prompt,
                **self._special,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise RequestError(f"the model's chat template refuses a conversation: {error}", field="model") from None
        return list(texts)


class Joints:
    """What a template writes between one message's content and the next, where that depends on the two roles alone.

    `between` maps (role before, role after) to that text; None stands for the beginning and the end.
    """

    def __init__(self, between: dict[tuple[str | None, str | None], str]) -> None:
        self.between = between
        after = [text for (before, _), text in between.items() if before == "assistant"]
        self.turn_end = commonprefix(after).rstrip()  # noqa: RUF071 — characters are meant
        """What ends an assistant's turn, without trailing white space: ``<|im_end|>``."""

    def compose(self, messages: Sequence[Message]) -> tuple[str, list[int]] | None:
        """The text, and where each message's content begins in it; None if there is a joint that wasn't learnt."""
        parts: list[str] = []
        starts: list[int] = []
        length = 0
        before: str | None = None
        for message in messages:
            joint = self.between.get((before, message["role"]))
            if joint is None:
                return None
            content = message["content"]
            starts.append(length + len(joint))
            length += len(joint) + len(content)
            parts += (joint, content)
            before = message["role"]
        joint = self.between.get((before, None))
        return None if joint is None else ("".join([*parts, joint]), starts)


_TURNS = [
    {"role": "user", "content": "q7f1"},
    {"role": "assistant", "content": "q7f2"},
    {"role": "user", "content": "q7f3"},
    {"role": "assistant", "content": "q7f4"},
]
_PROBES = [_TURNS, [{"role": "system", "content": "q7f0"}, *_TURNS]]


def _learn(template: ChatTemplate) -> Joints | None:
    """The joints of `template`; None if it is not made like that, and each conversation has to be looked at alone."""
    between: dict[tuple[str | None, str | None], str] = {}
    for probe in _PROBES:
        try:
            text = template.render(probe)
            starts = [text.index(message["content"]) for message in probe]
            prompts = [template.render(probe[:index], prompt=True) for index in _answers(probe)]
        except (RequestError, ValueError):
            continue  # as a template that has no system message
        if prompts != [text[: starts[index]] for index in _answers(probe)]:
            return None
        ends = [0, *(start + 4 for start in starts)]
        joints = [text[end:start] for end, start in zip(ends, [*starts, len(text)], strict=True)]
        roles = [None, *(message["role"] for message in probe), None]
        for roles_of_joint, joint in zip(pairwise(roles), joints, strict=True):
            if between.setdefault(roles_of_joint, joint) != joint:
                return None
    return Joints(between) if between else None


def _answers(messages: Sequence[Message]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]
