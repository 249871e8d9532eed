"""Python's search for garbage, where there is none: what imports make lives as long as the process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Nothing is searched meanwhile. With torch and transformers, searching takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def keep() -> None:
    """No later search looks again at what there is now, nor does the one at the end of the process, which after torch
    and transformers takes a second. Only for a process that is all ours: what is garbage by now stays, too."""
    gc.freeze()
