"""Which peak learning rates are known to work, so that others can be warned about before and during a training.

Sources: "LoRA without regret" (Thinking Machines, 2025): LoRA's best rate is about ten times that of full fine-tuning
and hardly depends on rank; published recipes for 1B to 70B.
"""

from __future__ import annotations

KNOWN_RATES = {"lora": (2e-5, 2e-2), "qlora": (2e-5, 2e-2), "full": (1e-7, 1e-3), "random": (1e-5, 3e-2)}
"""By method, or "random" for a model that starts from random weights. Below the first number nothing is learned, above
the second training breaks down."""
