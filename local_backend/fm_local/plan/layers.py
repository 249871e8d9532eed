"""A language model without storage, and its decoder layers: telling their kinds apart, putting a few in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fm.errors import Unsupported

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_TYPES = ("layer_types", "mlp_layer_types", "layers_block_type")
"""Lists in configurations that name the kind of each layer; some are properties that can't be set."""


def build_meta(config: Any, dtype: torch.dtype) -> Any:
    """The causal language model of `config`, a transformers configuration, without storage.

    Raises:
        Unsupported: transformers has no such model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            # A copy: what is done to the model's configuration shall not be done to the caller's.
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise Unsupported(f"no causal language model can be built: {error}", field="model") from None
    model.config.use_cache = False
    return model


def make_fake(model: nn.Module, trained_dtype: torch.dtype) -> None:
    """Gives all meta parameters and buffers fake storage on the CPU; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    trained = parameter.requires_grad
                    dtype = trained_dtype if trained else parameter.dtype
                    made[id(parameter)] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=trained)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


class DecoderLayers:
    """The decoder layers of a model, of which any selection can be put in their place."""

    def __init__(self, model: Any) -> None:
        """Raises:
        Unsupported: the model keeps no list of layers.
        """
        self._config = model.config.get_text_config()
        # The list with the most parameters: a mixture's experts may be lists too, within a layer.
        found = [
            (sum(p.numel() for p in child.parameters()), module, name, child)
            for module in model.modules()
            for name, child in module.named_children()
            if isinstance(child, nn.ModuleList)
        ]
        if not found:
            raise Unsupported(
                f"a {self._config.model_type} keeps no list of layers", field="model",
                hint="it can be trained, but not planned for",
            )
        _, self._parent, self._name, layers = max(found, key=lambda item: item[0])
        self.all = list(layers)
        aliases = type(self._config).attribute_map
        named = {aliases.get(name, name) for name in (*vars(self._config), *_TYPES)}
        values = {name: getattr(self._config, name, None) for name in named}
        self._by_layer = {
            name: value for name, value in values.items()
            if isinstance(value, list | tuple) and len(value) == len(self.all)
        }

    def kinds(self) -> list[list[int]]:
        """The layers' numbers, those of one kind together: of the same type and the same shapes."""
        kinds: dict[Any, list[int]] = {}
        for number, layer in enumerate(self.all):
            types = tuple(self._by_layer[name][number] for name in _TYPES if name in self._by_layer)
            shapes = tuple((name, parameter.shape) for name, parameter in layer.named_parameters())
            kinds.setdefault((types, shapes), []).append(number)
        return list(kinds.values())

    def multiply(self, numbers: Sequence[int]) -> None:
        """Makes copies of the layers `numbers` all that there are."""
        # The configuration is the model's one: it says later which attention is computed.
        self.all = [copy.deepcopy(self.all[number], {id(self._config): self._config}) for number in numbers]
        self._by_layer = {name: [kinds[number] for number in numbers] for name, kinds in self._by_layer.items()}
        self.put(range(len(numbers)))

    def put(self, numbers: Sequence[int]) -> None:
        """Makes the model one of only the layers `numbers`."""
        setattr(self._parent, self._name, nn.ModuleList(self.all[number] for number in numbers))
        for name in _COUNTS:
            if isinstance(getattr(self._config, name, None), int):
                setattr(self._config, name, len(numbers))
        family, fixed = type(self._config), {}
        for name, kinds in self._by_layer.items():
            chosen = tuple(kinds[number] for number in numbers)
            if isinstance(getattr(family, name, None), property | tuple):
                fixed[name] = chosen
            else:
                setattr(self._config, name, list(chosen))
        if fixed:
            # What a class computes from the number of layers only a class can be made to say otherwise.
            self._config.__class__ = type(family.__name__, (family,), fixed)
