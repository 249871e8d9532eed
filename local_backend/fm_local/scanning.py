"""transformers reads the files of all its models twice when it is imported: it keeps what it found of 128 folders, and
has more. Here it keeps all, and the second time costs nothing: a third of a second in each check and each training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_MODULE, _SCAN = "transformers.utils.import_utils", "create_import_structure_from_path"


class _Finder:
    """Finds one module, as Python would, and has its scan remember."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _MODULE or (spec := PathFinder.find_spec(name, path, target)) is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            scan: Any = getattr(module, _SCAN, None)
            if hasattr(scan, "__wrapped__"):
                setattr(module, _SCAN, cache(scan.__wrapped__))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def remember_scans() -> None:
    """For the import of transformers that is to come, if it has not been imported."""
    if _MODULE not in sys.modules and _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
