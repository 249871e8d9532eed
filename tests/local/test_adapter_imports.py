"""What an adapter's training imports, in processes of their own: here, other tests have imported all there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.models import model

PUT_ONE_ON = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from fm.request import LoraConfig
from fm_local.models.nf4 import load_nf4
from fm_local.trainer.adapters import add_adapter

def layers(base):
    adapted = add_adapter(base, LoraConfig(), token_ids=[], seed=0)
    return {type(module).__name__ for name, module in adapted.named_modules() if name.endswith("q_proj")}

path = Path(sys.argv[1])
print(layers(AutoModelForCausalLM.from_pretrained(path)), "bitsandbytes" in sys.modules)
"""
THEN_A_QUANTISED_ONE = """
print(layers(load_nf4(path, dtype=torch.float32, device=torch.device("cpu"))))
"""


def out_of(code: str, base: Path) -> list[str]:
    command = [sys.executable, "-c", code, str(base)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_an_adapter_on_plain_weights_does_not_wait_for_bitsandbytes(tmp_path: Path) -> None:
    assert out_of(PUT_ONE_ON, model("llama", tmp_path / "base")) == ["{'Linear'} False"]


def test_a_quantised_model_after_a_plain_one_gets_its_own_layers(tmp_path: Path) -> None:
    plain, quantised = out_of(PUT_ONE_ON + THEN_A_QUANTISED_ONE, model("llama", tmp_path / "base"))
    assert (plain, quantised) == ("{'Linear'} False", "{'Linear4bit'}")
