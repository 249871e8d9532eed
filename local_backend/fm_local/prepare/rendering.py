"""Examples as text, with the stretches of it that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
        chats = [example for example in examples if isinstance(example, Chat) and not example.tools]
        texts = iter(self._template.render_batch([chat.messages for chat in chats]) if chats else [])
        rendered = []
        for example in examples:
            match example:
                case Chat(messages, None):
                    rendered.append(self._chat(messages, None, next(texts)))
                case Chat(messages, tools):
                    rendered.append(self._chat(messages, tools, self._template.render(messages, tools)))
                case Instruction(prompt, response):
                    text = prompt + response
                    rendered.append(Rendered(text, [(len(prompt), len(text))]))
                case Text(text):
                    rendered.append(Rendered(text, [(0, len(text))]))
        return rendered

    def _chat(self, messages: list[Message], tools: list[dict[str, object]] | None, text: str) -> Rendered:
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if self._train_on == "last":
            answers = answers[-1:]
        joints = self._template.joints
        composed = joints.compose(messages) if joints and not tools else None
        if joints and composed and composed[0] == text:
            starts = composed[1]
            length = len(joints.turn_end)
            return Rendered(text, [(starts[at], starts[at] + len(messages[at]["content"]) + length) for at in answers])
        return Rendered(text, [self._span(messages, tools, text, at) for at in answers])

    def _span(
        self, messages: list[Message], tools: list[dict[str, object]] | None, text: str, at: int
    ) -> tuple[int, int]:
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
