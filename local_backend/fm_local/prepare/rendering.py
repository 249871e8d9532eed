"""Examples as text, with the stretches of it that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fm.data import Chat, Example, Instruction, Text
from fm.errors import Unsupported
from fm_local.models.tokenizer import ChatTemplate, Message


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text and its trained stretches ``(start, end)``, in characters and in order."""

    text: str
    trained: list[tuple[int, int]]


class Renderer:
    """Renders examples of one kind.

    Args:
        template: for chats; not used otherwise.
        train_on: which assistant turns are trained, the last or all.
    """

    def __init__(self, template: ChatTemplate, train_on: Literal["last", "all"]) -> None:
        self._template = template
        self._train_on = train_on

    def render(self, examples: Sequence[Example]) -> list[Rendered]:
        """The texts of `examples`.

        Raises:
            RequestError: the chat template refuses a conversation.
            Unsupported: the template rewrites earlier turns, so that no prefix of a conversation is what the model
                sees when it has to answer there.
        """
        chats = [example for example in examples if isinstance(example, Chat)]
        spoken = iter(self._spoken(chats) if chats else [])
        rendered = []
        for example in examples:
            match example:
                case Chat():
                    rendered.append(next(spoken))
                case Instruction(prompt, response):
                    text = prompt + response
                    rendered.append(Rendered(text, [(len(prompt), len(text))]))
                case Text(text):
                    rendered.append(Rendered(text, [(0, len(text))]))
        return rendered

    def _spoken(self, chats: list[Chat]) -> list[Rendered]:
        """The chats as text. What the template writes counts; where that is what its joints compose, the places of
        the answers are known, and otherwise the template is asked about each."""
        joints = self._template.joints
        composed = [joints.compose(chat.messages) if joints and not chat.tools else None for chat in chats]
        certain = [
            known if known and self._template.writes(chat.messages) else None
            for chat, known in zip(chats, composed, strict=True)
        ]
        texts = iter(self._texts([chat for chat, sure in zip(chats, certain, strict=True) if not sure]))
        rendered = []
        for (messages, tools), known, sure in zip(chats, composed, certain, strict=True):
            text = sure[0] if sure else next(texts)
            answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
            answers = answers[-1:] if self._train_on == "last" else answers
            if joints and known and known[0] == text:
                end = len(joints.turn_end)
                spans = [(known[1][at], known[1][at] + len(messages[at]["content"]) + end) for at in answers]
            else:
                spans = [self._span(messages, tools, text, at) for at in answers]
            rendered.append(Rendered(text, spans))
        return rendered

    def _texts(self, chats: list[Chat]) -> list[str]:
        if any(chat.tools for chat in chats):
            return [self._template.render(chat.messages, chat.tools) for chat in chats]
        return self._template.render_batch([chat.messages for chat in chats]) if chats else []

    def _span(self, messages: list[Message], tools: list[Any] | None, text: str, at: int) -> tuple[int, int]:
        """The stretch of answer `at`: from where the model would be asked for it, to the end of its turn."""
        prompt = self._template.render(messages[:at], tools, prompt=True)
        upto = self._template.render(messages[: at + 1], tools) if at + 1 < len(messages) else text
        if not (text.startswith(prompt) and text.startswith(upto) and len(prompt) < len(upto)):
            raise Unsupported(
                f"the model's chat template rewrites earlier turns: the conversation up to its message {at + 1} is "
                "not rendered as the beginning of the whole, so the model would be trained on what it never sees",
                field="train_on" if self._train_on == "all" else "model",
                hint='use train_on="last", or split each conversation so that it ends with the answer to learn'
                if self._train_on == "all"
                else "use a model whose template renders a conversation's beginning as it stands",
            )
        # White space behind the turn's end is the template's; white space of the answer itself stays.
        answer = messages[at]["content"]
        found = upto.rfind(answer, len(prompt)) if answer else -1
        end = found + len(answer) if found >= 0 else len(prompt)
        return len(prompt), max(end, len(upto.rstrip()))
