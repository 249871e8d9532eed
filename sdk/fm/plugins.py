"""The two seams' tables, and that of the other parts of `fm_local` and `fm_server`.

Each holds a name, the module to import, and what to install if that fails.

Third parties add theirs as entry points in the groups ``fm.backends`` and ``fm.launchers``; a built-in name always
means the built-in.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

from fm.errors import MissingExtra, RequestError
from fm.heap import importing


@dataclass(frozen=True, slots=True)
class Plugin:
    """Where an implementation is found: ``module:attribute``, and the extra that brings what it imports."""

    target: str
    extra: str = ""
    needs: tuple[str, ...] = ()
    """Packages that the extra brings and that are only imported later, by the processes that it starts."""


BACKENDS = {
    "local": Plugin("fm.backends.local:open_local"),
    "fake": Plugin("fm.backends.fake:open_fake"),
    "remote": Plugin("fm.remote.opening:open_remote"),
}
LAUNCHERS = {
    "process": Plugin(
        "fm_local.launcher:ProcessLauncher",
        extra="local",
        needs=("torch", "transformers", "peft", "accelerate", "safetensors"),
    ),
    "ray": Plugin("fm.ray.launcher:RayLauncher"),
}
PARTS = {
    "make_plan": Plugin("fm_local.plan.planning:make_plan", extra="local"),
    "open_model": Plugin("fm_local.models.load:open_model", extra="local"),
    "export_model": Plugin("fm_local.models.export:export", extra="local"),
    "preview": Plugin("fm_local.prepare.preview:preview", extra="local"),
    "admit_to_ray": Plugin("fm.ray.placing:admit"),
    "serve": Plugin("fm_server.command:serve", extra="server"),
    "serve_in_background": Plugin("fm_server.serving:serve_in_background", extra="server"),
}
"""What `fm` asks of `fm_local` beside training, of `fm.ray` and of `fm_server`. No seam: nobody else supplies these."""
EXTRAS = {
    "local": ("torch", "transformers", "peft", "accelerate", "safetensors", "datasets", "pyarrow"),
    "qlora": ("bitsandbytes",),
    "deepspeed": ("deepspeed",),
    "plot": ("matplotlib",),
    "pandas": ("pandas",),
    "server": ("fastapi", "uvicorn", "fsspec", "s3fs"),
    "track": ("mlflow", "tensorboard", "wandb"),
}
"""The modules that each extra brings."""
_FOUND: set[str] = set()
_BUILT_IN = {"backends": BACKENDS, "launchers": LAUNCHERS, "parts": PARTS}


def load(seam: str, name: str) -> Any:
    """What `name` stands for at `seam` ("backends", "launchers" or "parts").

    Raises:
        RequestError: there is none of that name.
        MissingExtra: what it imports is not installed.
    """
    plugin, field = find(seam, name), seam.removesuffix("s")
    module, _, attribute = plugin.target.partition(":")
    try:
        with importing():
            return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if not plugin.extra:
            raise
        raise MissingExtra(f"{field} {name!r} needs {error.name}, not installed here", extra=plugin.extra) from error


def find(seam: str, name: str) -> Plugin:
    """The table's entry for `name`, of which nothing is imported.

    Raises:
        RequestError: there is none of that name.
    """
    plugin = _BUILT_IN[seam].get(name) or _entry_points(seam).get(name)
    if plugin is None:
        known = ", ".join(sorted({*_BUILT_IN[seam], *_entry_points(seam)}))
        field = seam.removesuffix("s")
        raise RequestError(f"there is no {field} {name!r}", field=field, hint=f"known: {known}")
    return plugin


def require(seam: str, name: str) -> None:
    """Checks, without importing anything, that what `name` needs is installed.

    Raises:
        RequestError: there is none of that name.
        MissingExtra: a package that it needs is not installed.
    """
    plugin = find(seam, name)
    for package in plugin.needs:
        if not _is_installed(package):
            what = f"{seam.removesuffix('s')} {name!r}"
            raise MissingExtra(f"{what} needs {package}, not installed here", extra=plugin.extra)


def missing_from(extra: str) -> tuple[str, ...]:
    """The modules of `extra` that are not installed. Imports none of them."""
    return tuple(module for module in EXTRAS[extra] if not _is_installed(module))


def _is_installed(module: str) -> bool:
    # What was found once is not looked for again, which a server would do at every create; what was not found may have
    # been installed since.
    if module not in _FOUND and find_spec(module) is not None:
        _FOUND.add(module)
    return module in _FOUND


@cache
def _entry_points(seam: str) -> dict[str, Plugin]:
    # importlib.metadata costs 30 ms to import: only paid for names that are not built in.
    from importlib.metadata import entry_points

    return {point.name: Plugin(point.value) for point in entry_points(group=f"fm.{seam}")}
