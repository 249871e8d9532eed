"""Who may import whom, held over the import statements of the three packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"fm": ROOT / "sdk", "fm_local": ROOT / "local_backend", "fm_server": ROOT / "server_stub"}

LAYERS = [
    {"errors", "deadline", "duration", "names", "clock", "machine", "presets", "layout", "rates", "heap"},
    {"lifecycle", "request", "types", "files", "filestore", "objectstore", "uploads", "job"}
    | {"launching", "settings", "plugins"},
    {"store", "data", "backends", "sending"},
    {"agent"},
    {"api", "run", "testing", "context", "creation", "examine", "follow", "resolve", "caller", "pending", "display"}
    | {"tables", "remote", "wire"},
    {"cli"},
]
"""From the bottom up. A module imports from its own layer and those below it."""

HEAVY = {"torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "datasets", "fastapi", "uvicorn"}


def modules(package: str) -> list[Path]:
    return sorted((SOURCES[package] / package).rglob("*.py"))


def imported(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Full names of what the module imports, as written."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def layer(name: str) -> int:
    if name.startswith(("fm.backends.local", "fm.backends.fake")):
        return LAYERS.index({"agent"})  # they start it
    part = name.split(".")[1] if "." in name else "api"
    for number, parts in enumerate(LAYERS):
        if part in parts:
            return number
    return len(LAYERS) - 2  # the public verbs' small helpers


@pytest.mark.parametrize("path", modules("fm"), ids=lambda path: str(path.relative_to(ROOT)))
def test_fm_imports_downwards_and_reaches_the_other_packages_by_name_only(path: Path) -> None:
    own = ".".join(path.relative_to(SOURCES["fm"]).with_suffix("").parts)
    for name in imported(path):
        assert not name.startswith(("fm_local", "fm_server")), f"{own} imports {name}"
        assert name.split(".")[0] not in HEAVY - {"datasets"}, f"{own} imports {name}"
        if name.startswith("fm.") and own != "fm.__init__" and "TYPE_CHECKING" not in path.read_text():
            assert layer(name) <= layer(own), f"{own} imports {name}, which lies above it"


@pytest.mark.parametrize("path", modules("fm_local"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_local_backend_imports_fm_and_not_the_server(path: Path) -> None:
    for name in imported(path):
        assert not name.startswith("fm_server")
        assert not name.startswith(("fm.store", "fm.cli", "fm.api", "fm.run.", "fm.backends")), (
            f"{path.name} imports {name}: a trainer knows nothing of stores and backends"
        )


@pytest.mark.parametrize("path", modules("fm_server"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_server_imports_fm_and_neither_the_trainer_nor_the_command_line(path: Path) -> None:
    for name in imported(path):
        assert not name.startswith(("fm_local", "fm.cli", "fm.api", "torch")), f"{path.name} imports {name}"


@pytest.mark.parametrize("package", ["fm", "fm_local", "fm_server"])
def test_no_file_is_over_300_lines(package: str) -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules(package)}
    assert {path: lines for path, lines in lengths.items() if lines > 300} == {}


def test_torch_is_imported_at_the_top_only_below_the_trainer_the_models_and_the_plan() -> None:
    for path in modules("fm_local"):
        if path.parent.name not in ("trainer", "models", "plan"):
            names = {name.split(".")[0] for name in imported(path, top_level_only=True)}
            assert not names & {"torch", "peft", "accelerate"}, path


@pytest.mark.parametrize("package", SOURCES)
def test_nothing_opens_a_pickle_or_unpacks_an_archive(package: str) -> None:
    """CVE-2025-32434, CVE-2025-4517: both let what is in the file decide what is run or where it is written."""
    for path in modules(package):
        names = {name.split(".")[0] for name in imported(path)}
        assert not names & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile", "zipfile"}, path
        calls = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert "unpack_archive" not in calls, path
        assert "torch.load" not in path.read_text(), path
