"""Whether what is to be trained takes part in what the model computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fm.errors import RequestError
from fm_local.trainer.batching import unlabelled
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.sharding import try_backward


def refuse_unreached_adapters(
    loss: TokenLoss, trainable: Mapping[str, torch.nn.Parameter], device: torch.device
) -> None:
    """Refuses adapters that no gradient reaches: some models (Mamba) multiply by a layer's weight themselves instead of
    calling the layer, so an adapter on it stays what it is, without a word. Found by one small backward pass.

    A kind of layer counts as reached if one of its kind is: of a mixture's experts, a few tokens visit only some.

    Raises:
        RequestError: adapters of some kind of layer have no gradient anywhere.
    """
    adapters = {name: parameter for name, parameter in trainable.items() if ".lora_" in name}
    if not adapters:
        return
    ids = torch.arange(16, device=device)[None] % loss.language_model.config.get_text_config().vocab_size
    value = loss.logits(unlabelled(ids)).float().square().mean()
    reached: dict[str, bool] = {}
    for name, has_gradient in zip(adapters, try_backward(loss, value, list(adapters.values())), strict=True):
        kind = name.partition(".lora_")[0].rpartition(".")[2]
        reached[kind] = reached.get(kind, False) or has_gradient
    if dead := sorted(kind for kind, is_reached in reached.items() if not is_reached):
        living = sorted(set(reached) - set(dead))
        raise RequestError(
            f"adapters on {', '.join(dead)} would never learn: this model uses the weights of those layers without "
            "calling them",
            field="lora",
            hint=f"use lora={{'target_modules': {living}}}" if living else "choose other layers, or use method='full'",
        )
