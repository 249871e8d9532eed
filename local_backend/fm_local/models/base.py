"""Which files an adapter was trained on: remembered in its manifest, and compared before anything is built on it."""

from __future__ import annotations

from pathlib import Path

from fm.errors import RequestError
from fm.files import digest_folder, read_manifest

_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
"""What of a base decides on the result, and so goes into its digest."""


def digest_of_base(folder: Path, *, verify: bool = False) -> str:
    """One SHA-256 for all files of a model that decide on what is computed. A registered model's are not read for it,
    unless `verify` asks for that."""
    return digest_folder(folder, _MODEL_FILES, verify=verify)


def check_base(adapter: Path, base: Path) -> str:
    """Checks that the files in `base` are those that `adapter` was trained on, where its manifest remembers them, and
    returns their digest.

    Reads all of the base, so it is left out where a model is only opened.

    Raises:
        RequestError: they are not.
    """
    trained_on = (read_manifest(adapter) or {}).get("base_digest")
    found = digest_of_base(base, verify=True)
    if trained_on and trained_on != found:
        raise RequestError(
            f"the adapter in {adapter} was trained on another base than what lies in {base} now",
            field="model",
            hint="use the base that it was trained on, with its files unchanged",
        )
    return found
