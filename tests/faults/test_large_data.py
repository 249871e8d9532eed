"""100 MB of chats are validated and tokenised in bounded memory; `make prove` does it with 2 GB, and times it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "prepare_throughput.py"


def test_a_hundred_megabytes_are_checked_and_tokenised_in_under_a_gigabyte(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    script = [sys.executable, str(SCRIPT), "--megabytes", "100", "--stage-only", "--out", str(out)]
    subprocess.run(script, check=True, timeout=900)
    figures = json.loads(out.read_text())
    assert figures["data_mb"] >= 100
    assert figures["rows"] > 50_000 and figures["tokens"] > 10_000_000
    assert figures["peak_rss_mb"] < 1000
