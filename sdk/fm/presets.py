"""Models that need no download: random weights of a given shape, with a tokenizer trained on the run's own data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """A Llama of random weights. Sizes are those of `transformers.LlamaConfig`."""

    name: str
    display_name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    max_context_length: int


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("fm/tiny-llama", "Tiny Llama (random weights)", 1024, 128, 352, 3, 4, 512),
        Preset("fm/nano-llama", "Nano Llama (random weights, for tests)", 384, 64, 176, 2, 2, 256),
    )
}
