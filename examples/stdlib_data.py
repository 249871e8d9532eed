"""Builds training data from the docstrings of Python's standard library: text, question-and-answer pairs, and chats.

    python examples/stdlib_data.py OUT_DIR

The library's source files are parsed, never imported. The same Python gives the same files, byte for byte::

    OUT_DIR/text/<module>.txt            raw text, a document for each module             CONTINUED_PRETRAIN
    OUT_DIR/pairs.jsonl                  {"prompt", "response"}                           INSTRUCTION_FINETUNE
    OUT_DIR/chats.jsonl                  {"messages": […]}, two or more questions each    CHAT_COMPLETION
    OUT_DIR/text-heldout/, pairs-heldout.jsonl, chats-heldout.jsonl                       the same, held out

About one object (module, class, function or method) in 25 is held out, with everything that is said about it. Objects
whose docstrings begin with the same sentence are on the same side, so no answer is known from training.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SKIPPED = {"antigravity", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "this",
            "turtledemo"}  # fmt: skip
_PUBLIC_NAME = {"_pydatetime": "datetime", "_pydecimal": "decimal", "_pyio": "io"}
"""Modules whose source, on some versions of Python, lies in a private file."""
_HELD_OUT_IN = 25
_LONGEST_SUMMARY = 120
_LONGEST_SIGNATURE = 80
_LONGEST_EXAMPLE = 240
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(])")
_SIGNATURE_LINE = re.compile(r"[\w.]+\(.*\)\s*(?:->.*|--.*|=>.*|:.*)?")


@dataclass(frozen=True)
class Documented:
    """Something of the standard library that has a docstring."""

    name: str
    """In full, as ``json.dumps``."""
    module: str
    kind: str
    """module, class, function or method."""
    signature: str
    """As ``(obj, *, indent=None)``; empty for a module or a property."""
    docstring: str
    summary: str
    """Its first sentence."""
    example: str
    """Its first ``>>>`` example with the output; empty if it has none."""

    @property
    def held_out(self) -> bool:
        """Which side of the split it is on: the same on every machine, and for every object with this summary."""
        digest = hashlib.sha256(self.summary.lower().encode()).digest()
        return int.from_bytes(digest[:4], "big") % _HELD_OUT_IN == 0


def documented_objects() -> list[Documented]:
    """Everything public in the standard library with a docstring, by module; no name and no docstring comes twice."""
    seen: set[str] = set()
    objects = []
    for module, path in _source_files():
        for found in _in_module(module, ast.parse(path.read_bytes())):
            # A name may be defined again for another system, and a docstring be copied between modules.
            if not {found.name, found.docstring} & seen:
                seen |= {found.name, found.docstring}
                objects.append(found)
    return objects


def _source_files() -> Iterator[tuple[str, Path]]:
    """Name and source file of each public module that is written in Python."""
    root = Path(sysconfig.get_path("stdlib"))
    for top in sorted(sys.stdlib_module_names):
        if top in _SKIPPED or (top.startswith("_") and top not in _PUBLIC_NAME):
            continue
        for path in [root / f"{top}.py", *sorted((root / top).rglob("*.py"))]:
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            private = any(part.startswith("_") for part in parts[1:])
            if path.is_file() and not private and not _SKIPPED.intersection(parts):
                yield ".".join((_PUBLIC_NAME.get(top, top), *parts[1:])), path


def _in_module(module: str, tree: ast.Module) -> Iterator[Documented]:
    if found := _document(module, module, "module", "", tree):
        yield found
    yield from _in_body(module, module, tree.body, inside_class=False)


def _in_body(module: str, parent: str, body: Iterable[ast.stmt], *, inside_class: bool) -> Iterator[Documented]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _in_body(module, parent, [*node.body, *node.orelse], inside_class=inside_class)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            name = f"{parent}.{node.name}"
            kind = "class" if isinstance(node, ast.ClassDef) else "method" if inside_class else "function"
            if found := _document(name, module, kind, _signature(node, inside_class=inside_class), node):
                yield found
            if isinstance(node, ast.ClassDef):
                yield from _in_body(module, name, node.body, inside_class=True)


def _document(
    name: str, module: str, kind: str, signature: str,
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Documented | None:  # fmt: skip
    docstring = (ast.get_docstring(node) or "").strip()
    # Some docstrings are licences, or made of escape codes; lone surrogates can't be written as UTF-8.
    if not docstring.isprintable() and not docstring.replace("\n", "").isprintable():
        docstring = ""
    summary = _summary(docstring)
    if not summary:
        return None
    return Documented(name, module, kind, signature, docstring, summary, _example(docstring))


def _summary(docstring: str) -> str:
    """The first sentence. A signature on the first line, as in docstrings of C's time, is passed over."""
    lines = docstring.splitlines()
    while lines and (not lines[0].strip() or _SIGNATURE_LINE.fullmatch(lines[0].strip())):
        lines.pop(0)
    paragraph = "\n".join(lines).strip().split("\n\n")[0]
    return _SENTENCE_END.split(" ".join(paragraph.split()))[0]


def _example(docstring: str) -> str:
    """The first line that is typed at a prompt, with what belongs to it, up to the next one or an empty line."""
    lines = docstring.splitlines()
    for start, line in enumerate(lines):
        if line.strip().startswith(">>> "):
            taken = [line.strip()]
            for later in lines[start + 1 :]:
                if not later.strip() or later.strip().startswith(">>>"):
                    break
                taken.append(later.strip())
            return "\n".join(taken)
    return ""


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, *, inside_class: bool) -> str:
    """How it is called, without ``self``; a class is called as its ``__init__``."""
    if isinstance(node, ast.ClassDef):
        inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        return _signature(inits[0], inside_class=True) if inits else ""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if any("property" in decorator or decorator.endswith((".setter", ".deleter")) for decorator in decorators):
        return ""
    arguments = ast.unparse(node.args)
    if inside_class and "staticmethod" not in decorators:
        arguments = re.sub(r"^\w+(?:, /)?(?:, |$)", "", arguments)
    return f"({arguments})"


def pairs(objects: Iterable[Documented]) -> Iterator[dict[str, str]]:
    """What each object is for, and how it is called. A prompt ends with a line break; an answer does not."""
    for item in objects:
        if len(item.summary) <= _LONGEST_SUMMARY:
            yield {"prompt": _question(item) + "\n", "response": _answer(item)}
        if item.signature and len(item.signature) <= _LONGEST_SIGNATURE:
            yield {"prompt": f"What is the signature of {item.name}?\n", "response": _called(item)}


def chats(objects: Iterable[Documented]) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Conversations: what an object is for, then an example, its signature or its module, whatever it has."""
    for item in objects:
        if item.kind == "module" or len(item.summary) > _LONGEST_SUMMARY:
            continue
        turns = [(_question(item), _answer(item))]
        if item.example and len(item.example) <= _LONGEST_EXAMPLE:
            turns.append(("Show me an example.", item.example))
        elif item.signature and len(item.signature) <= _LONGEST_SIGNATURE and len(item.name) % 2:
            turns.append(("What is its signature?", _called(item)))
        else:
            turns.append(("Which module is it in?", f"It is in the module {item.module}."))
        yield {
            "messages": [
                {"role": role, "content": content}
                for turn in turns
                for role, content in zip(("user", "assistant"), turn, strict=True)
            ]
        }


def _question(item: Documented) -> str:
    if item.kind == "module":
        return f"What is the module {item.name} for?"
    return f"What is {item.name}?" if item.kind == "class" else f"What does {item.name} do?"


def _answer(item: Documented) -> str:
    what = "a module" if item.kind == "module" else f"a {item.kind} of {item.module}"
    return f"It is {what}: {item.summary}"


def _called(item: Documented) -> str:
    return "It is called without arguments." if item.signature == "()" else f"It is called with {item.signature}."


def text(objects: Iterable[Documented]) -> dict[str, str]:
    """A document for each module, in order: signatures and whole docstrings."""
    documents: dict[str, list[str]] = {}
    for item in objects:
        documents.setdefault(item.module, []).append(f"{item.name}{item.signature}\n{item.docstring}\n")
    return {module: "\n".join(paragraphs) for module, paragraphs in documents.items()}


def build(out: Path) -> dict[str, int]:
    """Writes all files below `out`, replacing older ones. Returns the number of rows or documents in each."""
    objects = documented_objects()
    if not objects:
        root = sysconfig.get_path("stdlib")
        raise SystemExit(f"no source files of the standard library in {root}: use a Python that has them (most do)")
    counts = {}
    for suffix, side in (
        ("", [item for item in objects if not item.held_out]),
        ("-heldout", [item for item in objects if item.held_out]),
    ):
        folder = out / f"text{suffix}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        documents = text(side)
        for module, document in documents.items():
            (folder / f"{module}.txt").write_text(document, encoding="utf-8")
        counts[folder.name] = len(documents)
        for name, rows in (("pairs", pairs(side)), ("chats", chats(side))):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            (out / f"{name}{suffix}.jsonl").write_text("".join(lines), encoding="utf-8")
            counts[f"{name}{suffix}.jsonl"] = len(lines)
    return counts


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/stdlib_data.py OUT_DIR")
    for name, count in build(Path(sys.argv[1])).items():
        print(f"{count:6,}  {Path(sys.argv[1]) / name}")
