"""DeepSpeed's ZeRO (Rajbhandari et al., 2020): every process keeps a part of gradients and moments, and in stage 3 of
the weights too, which are gathered layer by layer while they are needed.

DeepSpeed is called directly: what accelerate makes of it steps within the backward pass, whereas here gradients are
looked at before anything is done with them. It hides them, the weights that are stepped and their moments in flat
buffers of its own; `ZeroOptimizer` knows where in these each parameter lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fm.errors import MissingExtra
from fm_local.models.nf4 import keep_scales
from fm_local.trainer.batching import lay_in_row
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.optimizer import State

BUCKET = 1 << 25
"""Numbers that are summed or gathered at once: 128 MiB in fp32."""
KEPT_WHOLE = 100_000
"""Numbers of a weight that every process keeps whole all the same: to gather it would take more time than it saves
memory."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


def part_weights(loss: TokenLoss, device: torch.device) -> None:
    """Parts the weights of `loss` among the processes one by one. Each is moved to `device` for that, which so never
    holds all of them.

    Raises:
        MissingExtra: DeepSpeed is not installed.
    """
    deepspeed = _deepspeed()
    keep_scales(loss.language_model, device)
    deepspeed.zero.Init(module=loss, config_dict_or_path=_settings(3))


def open_engine(
    loss: TokenLoss, optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], *, stage: int
) -> tuple[Any, ZeroOptimizer]:
    """Parts what `optimizer` keeps. Returns what is to be called instead of `loss`, and what steps.

    Raises:
        MissingExtra: DeepSpeed is not installed.
    """
    deepspeed = _deepspeed()
    engine, *_ = deepspeed.initialize(model=loss, optimizer=optimizer, config=_settings(stage))
    if stage == 3:
        # The loss applies the head apart from the model, block by block, and needs it until its gradient is known.
        for weight in loss.language_model.get_output_embeddings().parameters():
            deepspeed.zero.register_external_parameter(loss, weight)
        # Other weights that are used without calling their layer, as adapters' are, DeepSpeed finds by itself, but only
        # while all of the module is called.
        with torch.no_grad():
            loss(lay_in_row([np.arange(8) % loss.language_model.config.get_text_config().vocab_size]).to(engine.device))
    return engine.forward, ZeroOptimizer(engine.optimizer, optimizer, trainable)


def _deepspeed() -> Any:
    """DeepSpeed, which compiles nothing and says only what is wrong."""
    try:
        import deepspeed
    except ModuleNotFoundError as error:
        raise MissingExtra("sharding over DeepSpeed needs deepspeed, not installed here", extra="deepspeed") from error
    # Else it tries for each of its kernels whether it could be compiled, and compiles one for processes of one machine.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _settings(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # asked for, and of no effect
        "managed_gradient_accumulation": False,  # a step has as many pieces as it needs
        "zero_allow_untested_optimizer": True,  # torch's own AdamW
        "steps_per_print": None,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            # What is fetched ahead may still be on its way when weights are gathered for a checkpoint.
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": KEPT_WHOLE,
            # Mixtures of experts as transformers has them use all of their weights in every process.
            "leaf_module": {"classes": []},
        },
    }


class _Place(NamedTuple):
    """Where this process's part of a parameter lies in a flat buffer."""

    flat: torch.Tensor
    """The buffer of weights, by which the moments' buffers are found."""
    at: int
    start: int
    """In the flattened parameter."""
    length: int
    """0 where this process has no part of it."""
    shape: torch.Size
    """Of the whole parameter."""


class ZeroOptimizer:
    """DeepSpeed's, as an `Optimizer`."""

    def __init__(self, zero: Any, stepped: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter]) -> None:
        """`zero`: DeepSpeed's, around `stepped`, which holds the flat buffers instead of parameters."""
        self._zero = zero
        self._state = stepped.state
        self._trainable = trainable
        self._places = dict(_places_in_stage_3(zero) if hasattr(zero, "fp16_groups") else _places_in_stage_2(zero))
        self.param_groups: list[dict[str, Any]] = stepped.param_groups

    def clip(self, max_norm: float) -> torch.Tensor:
        """See `Optimizer`."""
        self._zero.finalize_gradient_accumulation_boundary()
        parts = [part for group in self._zero.averaged_gradients.values() for part in group]
        norm = torch.stack(torch._foreach_norm(parts)).square().sum()
        torch.distributed.all_reduce(norm)
        norm = norm.sqrt()
        torch._foreach_mul_(parts, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def step(self) -> None:
        """See `Optimizer`; each process steps its part, and in stage 2 hands it round."""
        self._zero.step()

    def zero_grad(self) -> None:
        """See `Optimizer`."""
        self._zero.zero_grad(set_to_none=True)
        for gradients in (self._zero.averaged_gradients, getattr(self._zero, "all_grad_tensors", {})):
            gradients.clear()

    def state(self) -> State:
        """See `Optimizer`."""
        found = {}
        for name, parameter in self._trainable.items():
            place = self._places[parameter]
            state = self._state.get(place.flat, {})
            for key, value in state.items():
                found[f"{name}/{key}"] = _whole(value, place) if key in _MOMENTS else value.clone()
        return State(found, {})

    def load(self, weights: Mapping[str, torch.Tensor], state: State) -> None:
        """See `Optimizer`."""
        import deepspeed

        moments = state.tensors
        self._state.clear()
        with torch.no_grad():
            for name, parameter in self._trainable.items():
                with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
                    parameter.copy_(weights[name])
                place = self._places[parameter]
                _put(weights[name], place.flat, place)
                if f"{name}/step" not in moments:
                    continue
                kept = self._state[place.flat]
                for key in _MOMENTS:
                    flat = kept.setdefault(key, torch.zeros_like(place.flat))
                    _put(moments[f"{name}/{key}"], flat, place)
                kept["step"] = moments[f"{name}/step"].to(place.flat.device)


def _places_in_stage_2(zero: Any) -> Iterable[tuple[nn.Parameter, _Place]]:
    for flat, group in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        for parameter in group:
            if (own := parameter._hp_mapping) is None:
                yield parameter, _Place(flat, 0, 0, 0, parameter.shape)
            else:
                start, length = own.lp_fragment_address.start, own.lp_fragment_address.numel
                yield parameter, _Place(flat, own.hp_fragment_address.start, start, length, parameter.shape)


def _places_in_stage_3(zero: Any) -> Iterable[tuple[nn.Parameter, _Place]]:
    for flat, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        for parameter in group:
            _, at, size = zero.grad_position[zero.get_param_id(parameter)]
            start = min(torch.distributed.get_rank() * size, parameter.ds_numel)
            # All parts have one size; what the last ones lack is padding.
            yield parameter, _Place(flat, at, start, min(size, parameter.ds_numel - start), parameter.ds_shape)


def _whole(flat: torch.Tensor, place: _Place) -> torch.Tensor:
    whole = flat.new_zeros(place.shape.numel())
    whole[place.start : place.start + place.length] = flat[place.at : place.at + place.length]
    torch.distributed.reduce(whole, dst=0)
    return whole.view(place.shape).cpu() if torch.distributed.get_rank() == 0 else whole.new_empty(0)


def _put(whole: torch.Tensor, flat: torch.Tensor, place: _Place) -> None:
    flat[place.at : place.at + place.length] = whole.flatten()[place.start : place.start + place.length].to(flat.device)
