"""Trainings of two processes that talk over gloo, as the process launcher starts them."""

from __future__ import annotations

import os
import subprocess
import sys

from fm.layout import StageFolder

_SCRIPT = """
import sys
from pathlib import Path
{before}
from fm.layout import StageFolder
from fm_local.trainer.__main__ import main
sys.exit(main(StageFolder(Path(sys.argv[1]))))
"""


def run_ranks(folder: StageFolder, *, before: str = "") -> None:
    """Does the job in `folder` with two processes, each of which first executes `before`."""
    script = folder.path / "rank.py"
    script.write_text(_SCRIPT.format(before=before))
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--nnodes=1",
            "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", str(script), str(folder.path),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
