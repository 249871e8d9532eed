"""ftctl's own trainer on a job as an agent would hand it over: ``python -m training.ours RESULT SPEC``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fm.job import Job
from fm.layout import RunFolder, StageFolder
from fm.request import TrainRequest
from fm.types import DataRef, ModelRef
from training.clock import Result, Step
from training.task import CONTEXT, LEARNING, LORA


def prepare(root: Path, model: Path, data: Path) -> dict[str, Any]:
    """Runs the check stage in a process of its own; returns what it prepared, and the seconds it took."""
    from fm.data import check, locate
    from fm.request import TaskType

    begin = time.perf_counter()
    ref = check(locate(str(data), field="train_data_path"), TaskType.INSTRUCTION_FINETUNE)
    folder = StageFolder(root / "runs" / "run-bench" / "check")
    _job("check", root, model, data, ref, {"method": "full"}).write(folder)
    subprocess.run([sys.executable, "-m", "fm_local.prepare", str(folder.path)], check=True)
    seconds = time.perf_counter() - begin
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    [passed] = [event["data"] for event in events if event["type"] == "CHECK_PASSED"]
    return {"prepared": passed, "ref": ref.model_dump(mode="json"), "seconds": seconds}


def _job(stage: Any, root: Path, model: Path, data: Path, ref: DataRef, request: dict[str, Any], **more: Any) -> Job:
    values = {"model": str(model), "train_data_path": str(data), "task_type": "INSTRUCTION_FINETUNE"}
    values |= {"context_length": CONTEXT, **request}
    return Job(
        stage=stage, run_id="run-bench", run_name="bench", attempt=more.pop("attempt", 0),
        request=TrainRequest.build(values), model=ModelRef(kind="path", name=str(model), path=str(model)),
        train_data=ref, storage_root=str(root), started_at=datetime.now(UTC), **more,
    )  # fmt: skip


def main(result_path: Path, spec: dict[str, Any]) -> None:
    from fm_local.trainer.loop import train

    result = Result(started=spec["started"])
    root, model, data = (Path(spec[key]) for key in ("root", "model", "data"))
    request = {
        "method": spec["method"],
        "training_duration": f"{spec['steps']}ba" if spec["steps"] else "1ep",
        "precision": spec["precision"],
        "seed": spec["seed"],
        "batch_size": spec["batch"],
        "learning_rate": LEARNING["rates"][spec["method"]],
        "eval_interval": "1000ep",  # nobody else evaluates within those steps
        "save_interval": f"{spec['save_at']}ba" if spec["save_at"] else "1000ep",
        "lora": LORA,
        **spec["options"],
    }
    ref = DataRef(**spec["ref"])
    folder = RunFolder(root / "runs" / "run-bench").attempt(spec["attempt"])
    job = _job(
        "train",
        root,
        model,
        data,
        ref,
        request,
        attempt=spec["attempt"],
        prepared=spec["prepared"],
        resume_from=(spec["resume"],) if spec["resume"] else (),
    )
    job.write(folder)
    ticks: list[tuple[float, float]] = []

    def now() -> float:
        """The trainer's clock, which notes the processor time whenever it is read, as at the end of each step."""
        ticks.append((time.time(), time.process_time()))
        return ticks[-1][0]

    if spec["save_at"]:
        from fm_local.trainer import checkpoint

        # From collecting the tensors to the sealed folder.
        checkpoint.collect = result.timing_saves(checkpoint.collect)
        checkpoint.save = result.timing_saves(checkpoint.save)
        result.checkpoint = str(folder.checkpoint(spec["save_at"]))
    train(job, folder, now=now)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for line in lines:
        if "throughput/tokens_per_sec" not in (values := line["values"]):
            continue
        tokens = round(values["throughput/tokens_per_sec"] * values["time/step_seconds"])
        at = datetime.fromisoformat(line["time"]).timestamp()
        cpu = [used for moment, used in ticks if moment <= at][-1]
        seen = min(spec["batch"] * line["step"], spec["rows"])
        result.steps.append(Step(at, tokens, seen, values["loss/train/total"], cpu))
        result.peak_bytes = int(values["memory/peak_gib"] * 2**30)
    result.weights = str(folder.final)
    result.write(result_path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
