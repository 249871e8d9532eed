"""The training, from top to bottom: read the job, make the model ready, step until the duration is over, save.

Each step draws its random numbers (dropout) from the seed and the step's number. So nothing that happens between two
steps (evaluation, samples, saving, a kill and a resume) can change what the next one computes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from fm.duration import Unit
from fm.errors import RequestError, Unavailable
from fm.files import read_manifest
from fm.job import Job
from fm.layout import StageFolder, run_of
from fm.lifecycle import EventType
from fm_local.trainer import checkpoint, device, schedule
from fm_local.trainer.batching import Indices, epoch_steps
from fm_local.trainer.evaluate import answer_prompts, evaluate
from fm_local.trainer.facts import RankFacts
from fm_local.trainer.finish import final_weights, save_final
from fm_local.trainer.recovery import go_back, trouble_since
from fm_local.trainer.report import Report
from fm_local.trainer.setup import bytes_to_load, make_ready
from fm_local.trainer.step import Stepper


def train(
    job: Job,
    folder: StageFolder,
    *,
    stop_requested: Callable[[], bool] = lambda: False,
    max_tokens: int | None = None,
    checkpointing: bool = False,
    now: Callable[[], float] = time.time,
) -> bool:
    """Trains as `job` says and leaves the result in ``final/`` of `folder`.

    Args:
        stop_requested: asked between steps; once true, a checkpoint is saved and the training returns.
        max_tokens: padded tokens computed at once; None for what suits the device. The gradient does not depend on it.
        checkpointing: whether activations are computed again in the backward pass. Nor on that.
            Of several processes, both are the first's.
        now: seconds since 1970, with which a wall-clock budget is measured.

    Returns:
        Whether the training came to its end; False if it was asked to stop.

    Raises:
        FMError: what a user can act on.
    """
    request = job.request
    accelerator = device.open_accelerator(request, folder)
    world = accelerator.num_processes
    if not (request.min_processes or request.num_processes) <= world <= request.num_processes:
        raise RequestError(
            f"{world} processes were started for num_processes={request.num_processes}",
            field="num_processes",
            hint="start the trainer with torchrun --nproc-per-node, or ask for one process",
        )
    device.make_deterministic(accelerator.device)
    report = Report(folder, job, accelerator)
    report.pause("loading", moved=bytes_to_load(job))  # until the first step is done

    def agree(*decisions: float) -> list[float]:
        """What the first process decided: clocks and signals differ between processes, their steps must not."""
        if world == 1:
            return list(decisions)
        values = torch.tensor(decisions, dtype=torch.float64, device=accelerator.device)
        torch.distributed.broadcast(values, src=0)
        return values.tolist()

    # Else the processes would cut unequal numbers of pieces, and gather sharded layers unequal times.
    tokens_at_once, recompute = agree(max_tokens or device.micro_batch_tokens(accelerator.device), checkpointing)
    training = make_ready(job, accelerator, report, checkpointing=bool(recompute))
    data, trainee, optimizer = training.data, training.trainee, training.optimizer
    stepper = Stepper(training, accelerator, max_tokens=int(tokens_at_once), beat=report.sign)
    saved_bytes = 4 * trainee.parameters + 12 * training.trained_parameters  # at most: weights, or also AdamW's moments
    facts = RankFacts(folder, training, accelerator.process_index) if job.rank_facts else None

    # ---- where to begin
    to_look_at = bool(training.held_out or request.eval_prompts)
    at = schedule.Position(closing=schedule.guess_closing(training.trained_parameters, look=to_look_at))
    if found := checkpoint.newest_whole(job.resume_from):
        at = checkpoint.restore(found, trainee.trainable, optimizer, same=training.same)
    steps = epoch_steps(len(data), request.batch_size, request.seed, at.epoch)
    looked_at, saved_at = -1, at.step if found else -1
    own_run = run_of(folder.checkpoint(0))

    # ---- how far to go
    elapsed = schedule.running_seconds(job.started_at, job.elapsed_seconds, now)
    pace: schedule.Pace
    if request.duration.is_clock:
        pace = schedule.ClockPace(request.duration.value, elapsed)
    else:
        pace = schedule.CountedPace(schedule.steps_of(request.duration, data.lengths, request.batch_size, request.seed))

    def passed(at: schedule.Position) -> dict[Unit, float]:
        epochs = at.epoch + at.index / len(steps)
        return {Unit.EPOCH: epochs, Unit.BATCH: at.step, Unit.TOKEN: at.tokens, Unit.SECOND: elapsed()}

    looks = schedule.Every(request.eval_interval, passed, pace.progress)
    saves = schedule.Every(request.save_interval, passed, pace.progress)
    looks.start(at)
    saves.start(at)
    metrics: dict[str, float] = {}
    keeps_best = request.register_checkpoint == "best"

    def past_best() -> bool:
        return request.early_stopping_patience is not None and at.looks_since_best >= request.early_stopping_patience

    def checkpoints() -> list[Path]:
        return [*folder.checkpoints.glob("step-*"), *map(Path, job.resume_from)]

    def examples_of(step: int) -> Indices:
        epoch, index = divmod(step, len(steps))
        return epoch_steps(len(data), request.batch_size, request.seed, epoch)[index]

    def advance(tokens: int) -> None:
        nonlocal steps
        at.step, at.index, at.tokens = at.step + 1, at.index + 1, at.tokens + tokens
        if at.index == len(steps):
            at.epoch, at.index = at.epoch + 1, 0
            steps = epoch_steps(len(data), request.batch_size, request.seed, at.epoch)

    def beat() -> None:
        report.sign()
        # Alone, a process need not wait for a long evaluation's end; several have to stay together.
        if world == 1 and stop_requested():
            raise _Interrupted

    def look() -> None:
        """Evaluates, and lets the model answer the prompts."""
        began = now()
        if training.held_out is not None:
            values = evaluate(training, training.held_out, accelerator, max_tokens=stepper.max_tokens, beat=beat)
            at.judged(loss := values["metrics/eval/LanguageCrossEntropy"])
            for name in values:
                metrics.pop(name, None)
            if math.isfinite(loss):
                report.metrics(at.step, values)
                metrics.update(values)
            else:
                report.event(EventType.WARNING, f"step {at.step}: the loss on held-out data is {loss}", step=at.step)
        if request.eval_prompts and (accelerator.is_main_process or training.sharded):
            report.pause("answering")
            answers = answer_prompts(training, request, accelerator, beat=beat)
            report.event(
                EventType.SAMPLES_GENERATED, f"{len(answers)} answers at step {at.step}", step=at.step, samples=answers
            )
        at.closing["look"] = now() - began

    def save() -> None:
        began = now()
        report.pause("saving", moved=saved_bytes)
        whole = checkpoint.collect(trainee.trainable, optimizer)
        if accelerator.is_main_process:
            path, size = checkpoint.save(
                folder,
                at,
                whole,
                same=training.same,
                metrics=metrics,
                keep=request.keep_checkpoints,
                protected=at.best_step if keeps_best else None,
            )
            report.event(
                EventType.CHECKPOINT_SAVED, f"step {at.step}", step=at.step, path=str(path), bytes=size, metrics=metrics
            )
        accelerator.wait_for_everyone()
        at.closing["save"] = now() - began

    def progress() -> dict[str, float | int | str | None]:
        epoch = passed(at)[Unit.EPOCH]
        return {"step": at.step, "total_steps": pace.total_steps(at), "epoch": epoch, "tokens": at.tokens}

    total = pace.total_steps(at)
    report.event(
        EventType.TRAIN_STARTED,
        (f"from step {at.step} on, " if found else "")
        + f"{request.training_duration}"
        + (f", {total} steps" if total else ""),
        **progress(),
        resumed_from=found and str(found),
    )

    # ---- train
    while True:
        (look_due,) = agree(looks.due(at) or at.step == 0)
        if look_due and looked_at != at.step:
            with suppress(_Interrupted):
                look()
            looked_at = at.step
        save_due, stop = agree(saves.due(at) or (keeps_best and at.best_step == at.step), stop_requested())
        if ((save_due and at.step) or stop) and saved_at != at.step:
            save()
            saved_at = at.step
        if stop:
            report.close()
            return False
        finished, share, clock = agree(pace.finished(at) or past_best(), pace.progress_of_step(at), elapsed())
        if finished:
            break
        if at.clock_origin is None:
            at.clock_origin = clock
        if at.step in at.skipped:
            advance(0)
            continue

        at.share, began = share, now()
        rate = schedule.learning_rate(share, peak=training.peak_rate, shape=request.lr_scheduler, warmup=request.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        examples = steps[at.index]
        result = stepper.gradients(examples, at.step, seed=request.seed, max_norm=request.max_grad_norm)
        if facts:
            facts.add(at.step, result)
        if (since := trouble_since(at, result)) is not None:
            optimizer.zero_grad()
            report.pause("loading", moved=saved_bytes)
            at, restored = go_back(
                since,
                at,
                result,
                training,
                report,
                checkpoints=checkpoints(),
                examples_of=examples_of,
                own_run=own_run,
                first_process=accelerator.is_main_process,
            )
            accelerator.wait_for_everyone()
            if restored is not None:
                steps = epoch_steps(len(data), request.batch_size, request.seed, at.epoch)
                looked_at, saved_at = -1, at.step
                looks.start(at)
                saves.start(at)
                if run_of(restored) != own_run:
                    save()  # from now on this run's own come first: those that were passed by are not its to remove
            continue
        optimizer.step()
        optimizer.zero_grad()

        at.learnt(result.loss)
        tokens = int(data.lengths[examples].sum())
        advance(tokens)
        seconds = max(1e-6, now() - began)
        at.took(seconds)
        metrics |= {
            "loss/train/total": result.loss,
            "metrics/train/LanguageCrossEntropy": result.loss,
            "metrics/train/TokenAccuracy": result.accuracy,
            "lr": rate,
            "grad_norm": result.norm,
            "throughput/tokens_per_sec": tokens / seconds,
            "time/step_seconds": seconds,
            "memory/peak_gib": device.peak_gib(accelerator.device),
        }
        report.metrics(at.step, {key: value for key, value in metrics.items() if "/eval/" not in key})
        report.heartbeat(at.step)
        if report.update_is_due():
            left = (pace.total_steps(at) or 0) - at.step
            report.update(progress(), seconds_left=left * at.step_seconds)

    # ---- finish: what was trained is made safe before it is looked at
    if saved_at != at.step:
        save()
    if looked_at != at.step:
        try:
            look()
        except _Interrupted:
            report.close()
            return False
    report.pause("saving", moved=2 * saved_bytes)
    chosen = f"{at.step} steps, {at.tokens:,} tokens"
    if keeps_best and at.best_step not in (None, at.step):
        name = folder.checkpoint(at.best_step).name
        best = checkpoint.newest_whole(path for path in checkpoints() if path.name == name)
        if best is None:
            raise Unavailable(f"the checkpoint of step {at.best_step}, the best, is not whole", hint="resume the run")
        checkpoint.restore(best, trainee.trainable, optimizer, same=training.same)
        metrics = (read_manifest(best) or {})["metrics"]
        chosen += f"; the weights are those of step {at.best_step}, with the lowest loss on held-out data"
    weights = final_weights(trainee)
    if accelerator.is_main_process:
        save_final(folder, training, job, weights, metrics=metrics)
    accelerator.wait_for_everyone()
    report.event(EventType.TRAIN_FINISHED, chosen, **progress(), metrics=metrics)
    report.close()
    return True


class _Interrupted(Exception):
    """Asked to stop while looking at the model."""
