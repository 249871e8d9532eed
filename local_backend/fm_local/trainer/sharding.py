"""Every process keeps a part of each weight, gradient and moment, and gathers a layer's weights while it computes them.

This is torch's FSDP2. It is called directly: accelerate wants the optimiser to exist before the weights are parted, and
knows where a language model's layers lie only if it is given one, not the module of model and loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from fm_local.models.nf4 import keep_scales
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.methods import Trainee


def shard(loss: TokenLoss, trainee: Trainee, accelerator: Accelerator, *, offload: bool) -> Trainee:
    """Parts the weights of `loss` among the processes, and moves each part to where it is kept.

    Each layer is gathered by itself, for its forward and its backward pass. Embeddings, last norm and head are gathered
    for the whole step: the loss applies the head apart from the model, and tied ones are used at both ends.

    Args:
        trainee: on the CPU still, so that no device ever holds the whole.
        offload: whether the parts, and with them the optimiser, stay in the machine's memory.

    Returns:
        `trainee` with the parted parameters, which an optimiser is to be made of.
    """
    device = accelerator.device
    mesh = init_device_mesh(device.type, (accelerator.num_processes,))
    # Gathered in the format that is computed in: else autocast would keep a copy of each layer until the backward pass.
    half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    precision = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # On a CPU they are in its memory already.
    policy = CPUOffloadPolicy() if offload and device.type != "cpu" else OffloadPolicy()
    keep_scales(trainee.language_model, device)
    for layer in _layers(trainee.language_model):
        fully_shard(layer, mesh=mesh, mp_policy=precision, offload_policy=policy)
    fully_shard(loss, mesh=mesh, mp_policy=precision, offload_policy=policy)
    for method in (loss.logits, loss.look_at_head):
        register_fsdp_forward_method(loss, method.__name__)
    return replace(trainee, trainable={n: p for n, p in trainee.language_model.named_parameters() if p.requires_grad})


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules: a language model's layers, whatever its family calls them."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


@contextmanager
def gathered_outside_layers(module: nn.Module) -> Iterator[None]:
    """Embeddings and head of a sharded `module` are whole inside, so that parts of it can be called by themselves, and
    parted again at the end. A module that isn't sharded is left alone."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def try_backward(module: nn.Module, value: torch.Tensor, parameters: Sequence[nn.Parameter]) -> list[bool]:
    """Which of `parameters` have a gradient of `value`, which `module` gave; leaves none behind.

    Not by ``backward()`` where it can be avoided: what then sums gradients over the processes would take them for a
    step's. The parameters that FSDP2 gathers are others than those it keeps, and have to be filled by it.
    """
    if not isinstance(module, FSDPModule):
        return [part is not None for part in torch.autograd.grad(value, parameters, allow_unused=True)]
    torch.autograd.backward(value)
    found = [parameter.grad is not None for parameter in parameters]
    module.zero_grad(set_to_none=True)
    return found
