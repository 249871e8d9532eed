"""Running the scripts of examples/reference_scripts as they stand, with other values for the variables at their top."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from support.rows import chats, instructions, texts

FOLDER = Path(__file__).parents[2] / "examples" / "reference_scripts"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


def run_script(name: str, folder: Path, model: str) -> dict[str, Any]:
    """Runs the script `name` with `model` and small data in `folder`. Returns its variables."""
    values: dict[str, object] = {
        "MODEL": model,
        "TRAIN_DATA": str(chats(folder / "chats.jsonl")),
        "POLL_SECONDS": 0,
        "WEIGHTS": model,
    }
    if name == "instruction_finetune":
        values["TRAIN_DATA"] = str(instructions(folder / "train.jsonl"))
        values["EVAL_DATA"] = str(instructions(folder / "eval.jsonl", 4))
    if name == "continued_pretraining":
        values["TRAIN_DATA"] = str(texts(folder / "texts"))
    text = (FOLDER / f"{name}.py").read_text()
    for variable, value in values.items():
        text = re.sub(rf"^{variable} = .*$", f"{variable} = {value!r}", text, flags=re.MULTILINE)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, f"{name}.py", "exec"), space)
    return space
