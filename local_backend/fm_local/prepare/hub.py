"""Fetching a model of the Hugging Face hub: safetensors, configuration and tokenizer, and nothing that can run."""

from __future__ import annotations

from fm.errors import RequestError, Unavailable
from fm.types import ModelRef

_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


def fetch(model: ModelRef) -> ModelRef:
    """`model` with the folder of its weights, and likewise its base; what is here already is not asked for again.

    Raises:
        RequestError: there is no such model, or it may not be read with the token at hand.
        Unavailable: the hub can't be reached.
    """
    if model.adapter_of:
        model = model.model_copy(update={"adapter_of": fetch(model.adapter_of)})
    if model.kind != "hub" or model.path:
        return model
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        path = snapshot_download(model.name, allow_patterns=_WANTED)
    except GatedRepoError:
        raise RequestError(
            f"the model {model.name} asks its users to agree to terms first", field="model",
            hint=f"agree at https://huggingface.co/{model.name}, then `hf auth login`",
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise RequestError(
            f"there is no model {model.name} on the hub, or the token at hand may not read it", field="model",
            hint="for a folder write ./path; for a private model `hf auth login` first",
        ) from None
    except (OSError, RuntimeError) as error:
        raise Unavailable(
            f"the hub can't be reached for the model {model.name}: {str(error).partition(chr(10))[0]}",
            hint="download the model first and give its folder as model=./path",
        ) from error
    return model.model_copy(update={"path": path})
