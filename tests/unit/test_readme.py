"""What the README and the guides show is run, or at least understood, as it stands there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import fm
from fm.backends.scripted import ScriptedLauncher
from fm.cli.main import main
from support.data import chat, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run [^>]*-->\n)?```(python|sh)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def blocks(page: Path, language: str) -> list[tuple[bool, str]]:
    """(whether it is to be run, code) of each block."""
    return [(not kept, code) for kept, name, code in BLOCK.findall(page.read_text()) if name == language]


def commands() -> list[tuple[str, str]]:
    """(page, command) for each line of a shell block that calls ftctl."""
    return [
        (page.name, line)
        for page in PAGES
        for _, code in blocks(page, "sh")
        for line in code.replace("\\\n", " ").splitlines()
        if line.startswith("ftctl ")
    ]


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the examples name."""
    for name in ("train.jsonl", "eval.jsonl"):
        write_jsonl(tmp_path / name, [chat("a", "b"), chat("c", "d", "e", "f")])
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "a", "response": "b"}])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("working_folder")
def test_python_blocks_run_against_the_fake(page: Path, fm_fake: ScriptedLauncher) -> None:
    names: dict[str, object] = {"fm": fm}
    for run, code in blocks(page, "python"):
        compiled = compile(code, str(page), "exec")
        if run:
            exec(compiled, names)  # our own documentation
    for name, test in list(names.items()):
        if name.startswith("test_"):
            test(fm_fake)  # type: ignore[operator]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_fm_that_a_page_uses_exist(page: Path) -> None:
    for _, code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fm":
                assert hasattr(fm, node.attr), f"{page.name}: fm.{node.attr}"


@pytest.mark.parametrize(("page", "line"), commands())
@pytest.mark.usefixtures("working_folder")
def test_a_command_line_is_understood(page: str, line: str) -> None:
    words = [word for word in shlex.split(line, comments=True) if word != "--debug"][1:]
    command: click.Command = main
    context = click.Context(main, info_name="ftctl")
    # As click goes from group to group, but the last command is only parsed and not called.
    while isinstance(command, click.Group):
        with command.make_context(context.info_name, words, resilient_parsing=False) as context:
            name, found, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert name and found, f"{page}: {line}"
        command = found
    for option in command.params:
        if isinstance(option, click.Option) and isinstance(option.type, click.Path):
            option.type.exists = False
    command.make_context(name, words, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
