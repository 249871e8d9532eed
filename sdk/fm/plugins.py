"""The two seams' tables, and that of `fm_local`'s other parts.

Each holds a name, the module to import, and what to install if that fails.

Third parties add theirs as entry points in the groups ``fm.backends`` and ``fm.launchers``; a built-in name always
means the built-in.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from fm.errors import MissingExtra, RequestError


@dataclass(frozen=True, slots=True)
class Plugin:
    """Where an implementation is found: ``module:attribute``, and the extra that brings what it imports."""

    target: str
    extra: str = ""


BACKENDS = {
    "local": Plugin("fm.backends.local:open_local"),
    "fake": Plugin("fm.backends.fake:open_fake"),
}
LAUNCHERS = {
    "process": Plugin("fm_local.launcher:ProcessLauncher", extra="local"),
}
PARTS = {
    "open_model": Plugin("fm_local.models.load:open_model", extra="local"),
    "export_model": Plugin("fm_local.models.export:export", extra="local"),
    "preview": Plugin("fm_local.prepare.preview:preview", extra="local"),
}
"""What `fm` asks of `fm_local` beside training. No seam: nobody else can supply these."""
_BUILT_IN = {"backends": BACKENDS, "launchers": LAUNCHERS, "parts": PARTS}


def load(seam: str, name: str) -> Any:
    """What `name` stands for at `seam` ("backends", "launchers" or "parts").

    Raises:
        RequestError: there is none of that name.
        MissingExtra: what it imports is not installed.
    """
    plugin = _BUILT_IN[seam].get(name) or _entry_points(seam).get(name)
    field = seam.removesuffix("s")
    if plugin is None:
        known = ", ".join(sorted({*_BUILT_IN[seam], *_entry_points(seam)}))
        raise RequestError(f"there is no {field} {name!r}", field=field, hint=f"known: {known}")
    module, _, attribute = plugin.target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if not plugin.extra:
            raise
        raise MissingExtra(f"{field} {name!r} needs {error.name}, not installed here", extra=plugin.extra) from error


@cache
def _entry_points(seam: str) -> dict[str, Plugin]:
    # importlib.metadata costs 30 ms to import: only paid for names that are not built in.
    from importlib.metadata import entry_points

    return {point.name: Plugin(point.value) for point in entry_points(group=f"fm.{seam}")}
