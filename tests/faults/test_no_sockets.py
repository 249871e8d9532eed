"""A whole local run opens no connection that leaves the machine, in any of its processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.data import many_pairs

_GUARD = '''
import os, sys

def _guard(event, args):
    if event == "socket.connect":
        address = args[1]
        inside = isinstance(address, (str, bytes)) or str(address[0]) in ("127.0.0.1", "::1", "localhost")
    elif event == "socket.getaddrinfo":
        inside = args[0] in (None, "", "localhost", "127.0.0.1", "::1")
    elif event == "socket.sendto":
        inside = False
    else:
        return
    with open(os.environ["GUARD_LOG"], "a") as log:
        log.write(f"{'inside' if inside else 'OUTSIDE'} {os.getpid()} {event} {args[1:] or args}\\n")
    if not inside:
        raise OSError(f"{event} {args} would leave the machine")

sys.addaudithook(_guard)
with open(os.environ["GUARD_LOG"], "a") as log:
    log.write(f"guarded {os.getpid()} {' '.join(sys.orig_argv[1:4])}\\n")
'''

_SCRIPT = """
import sys, fm
run = fm.create(model="fm/nano-llama", train_data_path=sys.argv[1], eval_data_path=sys.argv[1],
                task_type="INSTRUCTION_FINETUNE", register_to="main.guard.base", method="full",
                training_duration="3ba", eval_prompts=["what is 3?"])
run.wait(120)
tuned = fm.create(model="main.guard.base", train_data_path=sys.argv[1], task_type="INSTRUCTION_FINETUNE",
                  register_to="main.guard.tuned", training_duration="3ba").wait(120)
print(fm.load(tuned).generate("what is 3?", max_new_tokens=4))
"""


def test_a_local_run_from_create_to_load_stays_on_this_machine(tmp_path: Path) -> None:
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(_GUARD)
    data = many_pairs(tmp_path / "pairs.jsonl", 32)
    log = tmp_path / "guard.log"
    environment = {**os.environ, "PYTHONPATH": str(guard), "GUARD_LOG": str(log), "FM_AGENT": "inline"}
    environment.pop("HF_HUB_OFFLINE")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(data)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = log.read_text().splitlines()
    guarded = " ".join(line for line in lines if line.startswith("guarded"))
    assert "fm_local.prepare" in guarded and "fm_local.trainer" in guarded, "the guard must be in every process"
    assert [line for line in lines if line.startswith("OUTSIDE")] == []
