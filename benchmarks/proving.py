"""What the scripts that prove share: running parts in fresh folders, and keeping their figures in `proof.json`."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PROOF = Path(__file__).with_name("proof.json")


def prove(parts: Mapping[str, Callable[[Path], dict[str, Any]]], chosen: Sequence[str]) -> int:
    """Runs the chosen parts, or all. Each one's figures are written as soon as it is done; other parts' stay.

    Returns the exit code: 1 if one of these parts does not hold.
    """
    failed = False
    for name in chosen or parts:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="prove-") as folder:
            figures = parts[name](Path(folder))
        keep(name, figures, began)
        failed |= not figures["holds"]
        print(f"{name}: {'holds' if figures['holds'] else 'DOES NOT HOLD'}", flush=True)
    return int(failed)


def keep(name: str, figures: Mapping[str, Any], began: float) -> None:
    """Writes what the part `name` has found since `began`, a time of the monotonic clock. A part that takes long writes
    what it has so far, so that a cut loses nothing."""
    proof = json.loads(PROOF.read_text()) if PROOF.exists() else {}
    proof[name] = {
        **figures,
        "at": datetime.now(UTC).date().isoformat(),
        "machine": {"cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()},
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    PROOF.write_text(json.dumps(proof, indent=1) + "\n")
