"""Import weight, measured in a fresh interpreter: what a light command must not load, it must not even touch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "sqlalchemy", "httpx", "rich", "pandas", "matplotlib", "plotext", "yaml", "pyarrow")


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stderr.split("\n"))


def test_import_fm_loads_next_to_nothing() -> None:
    loaded = loaded_by("import fm")
    assert not loaded & {*HEAVY, "pydantic", "click", "psutil", "asyncio"}
    assert {name for name in loaded if name.startswith("fm.")} == set()


def test_names_and_statuses_load_no_library() -> None:
    loaded = loaded_by("import fm; fm.Status, fm.Duration.parse('3ep'), fm.RunFailed, fm.EventType, fm.__version__")
    assert not loaded & {*HEAVY, "pydantic"}


def test_the_verbs_load_neither_torch_nor_a_database() -> None:
    assert not loaded_by("import fm; fm.create, fm.list, fm.Run, fm.LoraConfig, fm.testing") & set(HEAVY)


@pytest.mark.parametrize("arguments", [["runs", "list"], ["models", "list"], ["--version"]])
def test_a_light_command_loads_no_library_that_it_does_not_need(arguments: list[str]) -> None:
    loaded = loaded_by(f"from fm.cli.main import run\nassert run({arguments!r}) == 0")
    assert not loaded & {"torch", "transformers", "httpx", "pandas", "matplotlib", "plotext", "yaml", "pyarrow", "rich"}


def test_creating_a_run_on_this_machine_loads_no_torch() -> None:
    code = (
        "import json, os, tempfile, fm\n"
        "os.environ['FM_AGENT'] = 'off'\n"
        "path = os.path.join(tempfile.mkdtemp(), 'd.jsonl')\n"
        "open(path, 'w').write(json.dumps({'prompt': 'a', 'response': 'b'}))\n"
        "fm.create('fm/nano-llama', path, task_type='INSTRUCTION_FINETUNE', method='full')\n"
    )
    assert not loaded_by(code) & {"torch", "transformers", "httpx", "rich", "pandas", "datasets"}


def test_nothing_is_searched_for_garbage_while_a_part_is_imported_and_afterwards_it_is_again() -> None:
    code = (
        "import gc, fm.heap\n"
        "with fm.heap.importing():\n"
        "    assert not gc.isenabled()\n"
        "    with fm.heap.importing():\n"
        "        pass\n"
        "    assert not gc.isenabled()\n"
        "assert gc.isenabled()\n"
        "from fm.plugins import load\n"
        "load('backends', 'local')\n"
        "assert gc.isenabled() and gc.get_freeze_count() == 0, 'a script keeps its own collector'\n"
        "fm.heap.keep()\n"
        "assert gc.get_freeze_count() > 0\n"
    )
    assert "fm.backends.local" in loaded_by(code)


def test_transformers_reads_the_files_of_its_models_once_and_finds_in_them_what_it_finds_by_itself() -> None:
    code = (
        "import importlib, sys; sys.modules['torch'] = None\n"
        "import fm_local.models.tokenizer, transformers.models\n"
        "from transformers.utils.import_utils import create_import_structure_from_path as scan\n"
        "found = scan.cache_info()\n"
        "assert found.hits > 100 and found.currsize == found.misses, found\n"
        "from transformers import LlamaConfig\n"
        "from transformers.utils import import_utils\n"
        "from fm_local import scanning\n"
        "changed = import_utils.define_import_structure(transformers.models.__file__)\n"
        "sys.meta_path.remove(scanning._Finder)\n"
        "importlib.reload(import_utils)\n"
        "assert import_utils.define_import_structure(transformers.models.__file__) == changed\n"
    )
    assert "transformers.models.llama.configuration_llama" in loaded_by(code)
