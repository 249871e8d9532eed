"""Whether a chat template does nothing with a message's content but write it.

If so, its output for given roles is the same text with the contents put in, whatever they are: one rendering of made-up
contents says where, and no other conversation of these roles need be rendered. Jinja costs more than all else around
the tokenizer, and most templates are of this kind (ChatML, Qwen 2.5, Mistral); those that trim or split contents
(Llama 3, Gemma, Qwen 3) are not, and are rendered each time.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes

_CAPTURES = (
    nodes.FilterBlock, nodes.AssignBlock, nodes.CallBlock, nodes.Macro, nodes.Block, nodes.Extends, nodes.Include,
    nodes.Import, nodes.FromImport,
)
"""What takes up output and may change it."""


def only_writes_contents(template: str) -> bool:
    """Whether that is so for messages of a role and a content that is not empty. False where it can't be shown."""
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError:
        return False
    if any(next(tree.find_all(kind), None) for kind in _CAPTURES):
        return False
    turns = {
        loop.target.name
        for loop in tree.find_all(nodes.For)
        if _is_name(loop.iter, {"messages"}) and isinstance(loop.target, nodes.Name)
    }
    return _is_harmless(tree, turns, written=False)


def _is_harmless(node: nodes.Node, turns: set[str], *, written: bool) -> bool:
    """Whether nothing below `node` uses a content otherwise; `written` says that the value of `node` is output."""
    if (key := _field(node, turns)) is not None:
        return (key != "content" or written) and all(
            _is_harmless(index, turns, written=False) for index in _indices(node)
        )
    if _is_name(node, turns | {"messages"}):
        return False
    if isinstance(node, nodes.For):
        over_messages = _is_name(node.iter, {"messages"}) and node.test is None
        if node.recursive or not (over_messages or _is_harmless(node.iter, turns, written=False)):
            return False
        if not over_messages and not _is_harmless(node.target, turns, written=False):
            return False
        return all(_is_harmless(child, turns, written=False) for child in [*node.body, *node.else_])
    if isinstance(node, nodes.If) and _field(node.test, turns) == "content":
        # Contents are not empty, so the test says yes to each.
        return all(_is_harmless(child, turns, written=False) for child in [*node.body, *node.elif_, *node.else_])
    passes_on = isinstance(node, nodes.Output) or (written and isinstance(node, nodes.Add | nodes.Concat))
    return all(_is_harmless(child, turns, written=passes_on) for child in node.iter_child_nodes())


def _field(node: nodes.Node, turns: set[str]) -> str | None:
    """The key, if `node` is a field of a message: ``message.role``, ``messages[0]['content']``."""
    if isinstance(node, nodes.Getattr):
        key: Any = node.attr
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        key = node.arg.value
    else:
        return None
    owner = node.node
    is_message = _is_name(owner, turns) or (
        isinstance(owner, nodes.Getitem)
        and _is_name(owner.node, {"messages"})
        and not isinstance(owner.arg, nodes.Slice)
    )
    # A dict's methods reach its contents too: message.items(), message.get('content').
    return key if is_message and isinstance(key, str) and not hasattr(dict, key) else None


def _indices(node: nodes.Node) -> list[nodes.Node]:
    owner = node.node  # type: ignore[attr-defined]
    return [owner.arg] if isinstance(owner, nodes.Getitem) else []


def _is_name(node: nodes.Node, names: set[str]) -> bool:
    return isinstance(node, nodes.Name) and node.name in names
