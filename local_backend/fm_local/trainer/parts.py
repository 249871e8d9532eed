"""Tensors of which each process holds a part, whichever library has parted them: as wholes, and as parts again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def shape_of(parameter: torch.Tensor) -> torch.Size:
    """That of the whole `parameter`, parted or not."""
    return parameter.ds_shape if _is_parted_by_deepspeed(parameter) else parameter.shape  # type: ignore[attr-defined]


def gather(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` with the parted ones whole, in the memory of the first process; the others' are dropped one by one.

    All processes have to call it. One tensor under two names stays one.
    """
    whole: dict[int, torch.Tensor] = {}
    for tensor in tensors.values():
        if isinstance(tensor, DTensor) and id(tensor) not in whole:
            # Offloaded parts travel by the device's own network.
            full = cast(DTensor, tensor.detach().to(tensor.device_mesh.device_type)).full_tensor()
            whole[id(tensor)] = full.cpu() if tensor.device_mesh.get_rank() == 0 else full.new_empty(0)
        elif _is_parted_by_deepspeed(tensor) and id(tensor) not in whole:
            whole[id(tensor)] = _unparted(tensor)
    return {name: whole.get(id(tensor), tensor) for name, tensor in tensors.items()}


def part_of(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This process's part of `whole`, which lies parted as `parameter` does, and where `parameter` is."""
    if not isinstance(parameter, DTensor):
        return whole.to(parameter.device)
    mesh = parameter.device_mesh
    # Every process has read the whole: nothing need be sent.
    return distribute_tensor(whole.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None).to(
        parameter.device
    )


def _is_parted_by_deepspeed(tensor: torch.Tensor) -> bool:
    # Under FSDP2 the parameter itself is a tensor of another class.
    return hasattr(tensor, "ds_id")


def _unparted(parameter: torch.Tensor) -> torch.Tensor:
    """A parted `parameter`, whole in the memory of the first process. All processes have to call it."""
    import deepspeed

    part: Any = parameter.ds_tensor  # type: ignore[attr-defined]
    part.data = part.data.to(parameter.dtype)  # `module.to` has changed the parameter alone
    with deepspeed.zero.GatheredParameters([parameter]):
        first = torch.distributed.get_rank() == 0
        return parameter.detach().to("cpu", copy=True) if first else parameter.new_empty(0)
