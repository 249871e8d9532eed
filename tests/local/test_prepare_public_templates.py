"""Chat templates of the shapes that public models bring: what is trained, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from fm.data import Chat
from fm.errors import RequestError, Unsupported
from fm_local.models.tokenizer import stop_token_ids
from support.data import chat
from support.models import END, EOS, byte_tokenizer
from support.templates import encode, spans

# ruff: noqa: E501 - the templates' own lines
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<|turn|>' + role + '\\n' + message['content'] | trim + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn|>model\\n' }}{% endif %}"""
LLAMA31 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = '' %}{%- endif %}
{{- '<|turn|>system\\n\\n' }}
{%- if tools is not none %}{{- 'Environment: ipython\\n' }}{%- endif %}
{{- 'Cutting Knowledge Date: December 2023\\n' + system_message + '<|end|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|turn|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|end|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception('only single tool-calls at once!') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|turn|>assistant\\n\\n{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}<|end|>' }}
    {%- else %}{{- '<|turn|>ipython\\n\\n' + (message.content | tojson) + '<|end|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n\\n' }}{%- endif %}"""
QWEN3 = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
    {%- if message.role in ('user', 'system') %}{{- '<|turn|>' + message.role + '\\n' + message.content + '<|end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}{%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|turn|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|end|>\\n' }}
    {%- elif message.role == 'tool' %}{{- '<|turn|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n' }}{%- endif %}"""
SMOLLM3 = """{%- for message in messages %}
    {%- if message.role == 'assistant' %}{{- '<|turn|>assistant\\n' }}
        {%- generation %}{{- message.content + '<|end|>\\n' }}{%- endgeneration %}
    {%- else %}{{- '<|turn|>' + message.role + '\\n' + message.content + '<|end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n' }}{%- endif %}"""
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALLING: list[dict[str, Any]] = [
    {"role": "user", "content": "1+2?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}],
    },
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
]


def trained(template: str, example: Chat | dict[str, Any], train_on: Any = "all") -> list[str]:
    """The decoded trained stretches."""
    tokenizer = byte_tokenizer(template)
    return spans(tokenizer, encode(tokenizer, example, train_on=train_on))



@pytest.mark.parametrize("template", [GEMMA, LLAMA31, SMOLLM3], ids=["gemma", "llama31", "smollm3"])
def test_each_answer_with_the_end_of_its_turn_is_trained_and_nothing_else(template: str) -> None:
    assert trained(template, chat("a", "Bee.", "c", "Dee.")) == ["Bee.<|end|>", "Dee.<|end|>"]
    assert trained(template, chat("a", "Bee.", "c", "Dee."), "last") == ["Dee.<|end|>"]


@pytest.mark.parametrize("template", [GEMMA, LLAMA31, QWEN3, SMOLLM3], ids=["gemma", "llama31", "qwen3", "smollm3"])
def test_trap_11_the_end_of_a_turn_stops_generation(template: str) -> None:
    assert stop_token_ids(byte_tokenizer(template), template) == [EOS, END]


def test_a_system_message_that_the_template_refuses_is_an_error_with_its_reason() -> None:
    with pytest.raises(RequestError, match="System role not supported"):
        trained(GEMMA, chat("a", "b", system="Be brief."))
    assert trained(LLAMA31, chat("a", "Bee.", system="Be brief.")) == ["Bee.<|end|>"]


def test_a_think_block_is_trained_with_the_answer_that_the_template_shows_it_in() -> None:
    thought = chat("a", "<think>\nhm\n</think>\n\nBee.")
    assert trained(QWEN3, thought) == ["<think>\nhm\n</think>\n\nBee.<|end|>"]
    # Without a thought the template itself writes an empty one before the last answer: that is what the model answers.
    assert trained(QWEN3, chat("a", "Bee.")) == ["<think>\n\n</think>\n\nBee.<|end|>"]
    assert trained(QWEN3, chat("a", "Bee.", "c", "Dee."), "last") == ["<think>\n\n</think>\n\nDee.<|end|>"]


def test_trap_15_think_blocks_taken_from_earlier_answers_are_refused_where_those_are_trained() -> None:
    thoughts = chat("a", "<think>x</think>Bee.", "c", "<think>y</think>Dee.")
    with pytest.raises(Unsupported, match=r"rewrites earlier turns(?s:.)*train_on=\"last\"") as caught:
        trained(QWEN3, thoughts)
    assert caught.value.field == "train_on"
    assert trained(QWEN3, thoughts, "last") == ["<think>\ny\n</think>\n\nDee.<|end|>"]


@pytest.mark.parametrize("template", [LLAMA31, QWEN3], ids=["llama31", "qwen3"])
def test_a_tool_call_is_trained_and_the_tools_answer_is_not(template: str) -> None:
    call = trained(template, Chat(CALLING[:2], TOOLS))
    assert len(call) == 1 and '"name": "add"' in call[0] and call[0].endswith("<|end|>")
    spoken = trained(template, Chat(CALLING, TOOLS), "last")
    assert len(spoken) == 1 and spoken[0].endswith("It is 3.<|end|>")
    assert "1+2?" not in spoken[0] and "tool_response" not in spoken[0] and "ipython" not in spoken[0]
