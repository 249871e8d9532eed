"""Which templates are known to write contents as they stand, and that texts composed on that ground are right."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fm_local.models.template_proof import only_writes_contents
from fm_local.models.tokenizer import PRESET_TEMPLATE, ChatTemplate
from support.data import chat

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You are Qwen.' }}{%- endif %}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first)
        or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}{{- tool_call.name }}{%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def over_turns(inner: str) -> str:
    return "{% for m in messages %}" + inner + "{% endfor %}"


@pytest.mark.parametrize("template", [PRESET_TEMPLATE, QWEN25, over_turns("{{ m.role ~ m['content'] }}")])
def test_templates_that_write_contents_as_they_stand_are_known(template: str) -> None:
    assert only_writes_contents(template)


@pytest.mark.parametrize(
    "inner",
    [
        "{{ m.content | trim }}",
        "{{ m['content'].strip() }}",
        "{{ m.content[1:] }}",
        "{{ m.content * 2 }}",
        "{{ m | tojson }}",
        "{{ m }}",
        "{{ messages }}",
        "{{ messages | length }}",
        "{% if 'x' in m.content %}y{% endif %}",
        "{% if m.content == 'x' %}y{% endif %}",
        "{{ 'y' if m.content == 'x' else 'z' }}",
        "{% set content = m.content %}{{ content | trim }}",
        "{% set m = {'content': 'x'} %}{{ m.content }}",
        "{% filter upper %}{{ m.content }}{% endfilter %}",
        "{% set x %}{{ m.content }}{% endset %}{{ x | trim }}",
        "{{ m[key] }}",
        "{{ m.items() }}",
        "{{ (m.role + m.content) | upper }}",
        "{% for part in m.content %}{{ part }}{% endfor %}",
        "{% for n in messages if n.content != 'x' %}{{ n.content }}{% endfor %}",
        "{% for n in messages[1:] %}{{ n.content | trim }}{% endfor %}",
        "{{ messages[0].content | trim }}",
        "{% block x %}{{ m.content }}{% endblock %}{{ self.x() | trim }}",
        "{% macro f() %}{{ m.content }}{% endmacro %}{{ f() | trim }}",
        "{{ messages[m.content | length].role }}",
        "{% generation %}{{ m.content }}{% endgeneration %}",
    ],
)
def test_templates_that_do_more_with_contents_are_not_taken_for_such(inner: str) -> None:
    assert not only_writes_contents(over_turns(inner))


@settings(max_examples=100, deadline=None)
@given(
    contents=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=8),
    system=st.none() | st.text(min_size=1),
)
@pytest.mark.parametrize("source", [PRESET_TEMPLATE, QWEN25])
def test_what_is_composed_with_certainty_is_what_jinja_renders(
    source: str, contents: list[str], system: str | None
) -> None:
    messages = chat(*contents[: len(contents) // 2 * 2], system=system)["messages"]
    template = ChatTemplate(source, {})
    assert template.writes(messages) and template.joints
    composed = template.joints.compose(messages)
    assert composed and composed[0] == template.render(messages)


def test_a_template_whose_joints_depend_on_the_position_is_rendered_where_they_differ() -> None:
    source = over_turns("{% if loop.index == 5 %}FIFTH{% endif %}<{{ m.role }}>{{ m.content }};")
    template = ChatTemplate(source, {})
    assert only_writes_contents(source)
    assert not template.writes(chat(*"abcdef")["messages"])
