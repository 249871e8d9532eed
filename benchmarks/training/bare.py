"""The ceiling: a bare loop of the same method on dense tokens, ``python -m training.bare RESULT SPEC``.

No padding, no data set, no logging: rows of random tokens of one length, all of them trained, as many in each optimiser
step as the others have on average. ``options``: rows and length of a micro-batch, and the attention.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everyone knows
from transformers import AutoModelForCausalLM

from training.clock import Result, Step, peak_bytes
from training.task import LEARNING, LORA, SKIPPED_STEPS


def build(spec: dict[str, Any], device: str) -> torch.nn.Module:
    """The model, made ready as the method says: what is trained in fp32, the frozen part as is computed."""
    method = spec["method"]
    frozen = torch.bfloat16 if method != "full" and spec["precision"] == "bf16" else torch.float32
    more: dict[str, Any] = {"attn_implementation": spec["options"]["attention"]}
    if method == "qlora":
        from transformers import BitsAndBytesConfig

        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=frozen, **more).to(device)
    if method != "full":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules="all-linear")
        model = get_peft_model(model, config)
    model.config.use_cache = False
    return model.train()


def main(result_path: Path, spec: dict[str, Any]) -> None:
    result, options = Result(started=spec["started"]), spec["options"]
    device = spec["device"]
    torch.manual_seed(spec["seed"])
    model = build(spec, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=LEARNING["betas"], weight_decay=0.0, fused=True)
    rows, length = options["rows"], options["length"]
    pieces = max(1, round(spec["tokens_per_step"] / (rows * length)))
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    # Each step is as any other: no whole epoch is needed.
    for step in range(SKIPPED_STEPS + 10):
        total = torch.zeros((), device=device)
        for _ in range(pieces):
            ids = torch.randint(2, vocabulary, (rows, length + 1), device=device)
            with torch.autocast(device, torch.bfloat16, enabled=spec["precision"] == "bf16"):
                logits = model(input_ids=ids[:, :-1], use_cache=False).logits
                loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()) / pieces
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, LEARNING["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = total.item()
        result.steps.append(Step(time.time(), pieces * rows * length, step + 1, value, time.process_time()))
    result.peak_bytes = peak_bytes()
    result.write(result_path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
