"""Looking at the model without touching its training: loss on held-out data, and answers to prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from fm.request import TaskType, TrainRequest
from fm_local.models.generating import continue_tokens, prompt_tokens
from fm_local.trainer.batching import Examples, Piece, collate, micro_batches, pieces_of_all
from fm_local.trainer.setup import Training
from fm_local.trainer.sharding import gathered_outside_layers

_SAMPLE_TOKENS = 100


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    module.eval()
    try:
        with torch.no_grad(), gathered_outside_layers(module):
            yield
    finally:
        module.train()


def evaluate(
    training: Training, data: Examples, accelerator: Accelerator, *, max_tokens: int, beat: Callable[[], None]
) -> dict[str, float]:
    """Loss (nats for each labelled token), perplexity and top-1 accuracy over all of `data`.

    Sums over tokens, divided once at the end: neither batch sizes nor the number of processes shows in the result.
    """
    loss, lanes = training.loss, training.lanes
    pieces = pieces_of_all(
        np.arange(len(data)),
        data.lengths,
        accelerator.process_index,
        accelerator.num_processes,
        cut=lambda share: micro_batches(share, data.lengths, max_tokens // lanes.count),
        even=training.sharded,
    )

    def compute(piece: Piece) -> torch.Tensor:
        examples, counts = piece
        with torch.no_grad():
            value, right = loss(collate(data, examples, labelled=counts).to(accelerator.device))
        return torch.stack([value.double(), right.double()])

    total = torch.zeros(2, dtype=torch.float64)
    with _evaluating(loss):
        for sums in lanes.map(compute, pieces):
            total += sums.cpu()
            beat()
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total.to(accelerator.device)).cpu()
    cross_entropy, accuracy = (total / max(1, int(data.trained.sum()))).tolist()
    return {
        "metrics/eval/LanguageCrossEntropy": cross_entropy,
        "metrics/eval/LanguagePerplexity": math.exp(min(cross_entropy, 700.0)),
        "metrics/eval/TokenAccuracy": accuracy,
    }


def answer_prompts(
    training: Training, request: TrainRequest, accelerator: Accelerator, *, beat: Callable[[], None]
) -> list[dict[str, Any]]:
    """One sampled answer for each of `eval_prompts`: up to 100 new tokens, temperature 1, top-k 50, top-p 0.95.

    For chats a prompt is the user's turn. ``ended`` says that the model stopped by itself. Of a sharded model all
    processes have to call this, since they hold it together.
    """
    chat = request.task_type is TaskType.CHAT_COMPLETION
    samples = []
    with _evaluating(training.loss), accelerator.autocast():
        for number, prompt in enumerate(request.eval_prompts):
            asked: Any = [{"role": "user", "content": prompt}] if chat else prompt
            ids = prompt_tokens(training.tokenizer, asked, training.template)
            tokens, ended = continue_tokens(
                training.trainee.language_model,
                ids,
                stop=training.stop_tokens,
                max_new_tokens=_SAMPLE_TOKENS,
                temperature=1.0,
                top_k=50,
                top_p=0.95,
                seed=request.seed + number,
                together=training.sharded,
            )
            answer = training.tokenizer.decode(tokens, skip_special_tokens=True)
            samples.append({"prompt": prompt, "answer": answer, "ended": ended})
            beat()
    return samples
