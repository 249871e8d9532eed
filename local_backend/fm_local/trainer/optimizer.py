"""What steps the weights: torch's optimisers here, DeepSpeed's around one of them in `zero`, by the same methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from fm_local.trainer.parts import gather, part_of, shape_of

_BETAS = (0.9, 0.95)
"""As language models are usually trained (GPT-3, Llama) and as the reference has it. With torch's 0.999 the demo's
first stage ends at a held-out loss of 4.13 instead of 3.64."""


class State(NamedTuple):
    """An optimiser's memory, with no trace of how many processes hold it."""

    tensors: dict[str, torch.Tensor]
    """By "<parameter>/<name in torch's state>", of which neither holds a slash of its own."""
    scalars: dict[str, Any]
    """The rest, likewise."""


class Optimizer(Protocol):
    """Steps the trained parameters, whose gradients the pieces of a step have left, however the parameters are held."""

    param_groups: list[dict[str, Any]]
    """Whose "lr" is the rate of the next step."""

    def clip(self, max_norm: float) -> torch.Tensor:
        """Ends a step's pieces: clips the gradient to `max_norm`, and returns its norm before that."""

    def step(self) -> None:
        """Changes the weights by what the gradients say."""

    def zero_grad(self) -> None:
        """Forgets the gradients, whether or not they were used."""

    def state(self) -> State:
        """All of it, whole in the memory of the first process. All processes have to call it."""

    def load(self, weights: Mapping[str, torch.Tensor], state: State) -> None:
        """Puts whole `weights` and the `state` that belongs to them in their places, and forgets any other."""


class TorchOptimizer:
    """One of torch's, on parameters that are whole or that FSDP2 has parted."""

    def __init__(self, inner: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter]) -> None:
        """`trainable`: the parameters of `inner`, by name."""
        self._inner = inner
        self._trainable = trainable
        self.param_groups: list[dict[str, Any]] = inner.param_groups

    def clip(self, max_norm: float) -> torch.Tensor:
        """See `Optimizer`."""
        norm = torch.nn.utils.clip_grad_norm_(list(self._trainable.values()), max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def step(self) -> None:
        """See `Optimizer`."""
        self._inner.step()

    def zero_grad(self) -> None:
        """See `Optimizer`."""
        self._inner.zero_grad(set_to_none=True)

    def state(self) -> State:
        """See `Optimizer`."""
        names = {id(parameter): name for name, parameter in self._trainable.items()}
        entries: dict[str, Any] = {
            f"{names[id(parameter)]}/{key}": value
            for parameter, kept in self._inner.state.items()
            for key, value in kept.items()
        }
        tensors = {key: value for key, value in entries.items() if isinstance(value, torch.Tensor)}
        return State(gather(tensors), {key: value for key, value in entries.items() if key not in tensors})

    def load(self, weights: Mapping[str, torch.Tensor], state: State) -> None:
        """See `Optimizer`."""
        with torch.no_grad():
            for name, parameter in self._trainable.items():
                parameter.copy_(part_of(weights[name], parameter))
        self._inner.state.clear()  # else what is not in `state`, as a parameter's first moments, would stay
        fused = {id(p) for group in self.param_groups if group.get("fused") for p in group["params"]}
        for key, value in [*state.tensors.items(), *state.scalars.items()]:
            name, _, entry = key.rpartition("/")
            parameter = self._trainable[name]
            if isinstance(value, torch.Tensor) and value.dim():
                value = part_of(value, parameter)
            elif isinstance(value, torch.Tensor) and id(parameter) in fused:
                value = value.to(parameter.device)  # the count of steps, which the fused kernel reads where it runs
            self._inner.state[parameter][entry] = value


def make_optimizer(name: str, trainable: Mapping[str, nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    """The request's optimiser, as torch knows it. Weight decay spares biases and norms, which hold no direction to
    decay."""
    matrices = [p for p in trainable.values() if len(shape_of(p)) >= 2]
    others = [p for p in trainable.values() if len(shape_of(p)) < 2]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((matrices, weight_decay), (others, 0.0))
        if params
    ]
    if name == "adafactor":
        from transformers.optimization import Adafactor

        # Without its own scaling, so that a learning rate means what it means for AdamW.
        adafactor: torch.optim.Optimizer = Adafactor(
            groups, lr=0.0, scale_parameter=False, relative_step=False, warmup_init=False
        )
        return adafactor
    fused = next(iter(trainable.values())).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=0.0, betas=_BETAS, fused=fused)
