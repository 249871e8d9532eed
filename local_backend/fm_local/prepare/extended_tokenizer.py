"""A base's tokenizer with the request's new tokens, kept like tokenised data: found again by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fm.files import read_manifest, seal
from fm.layout import Storage
from fm_local.models.tokenizer import load_tokenizer
from fm_local.prepare.shards import digest_of, making


def with_new_tokens(storage: Storage, folder: Path, tokens: Sequence[str]) -> tuple[Path, list[str]]:
    """Where the tokenizer of `folder` lies with `tokens`, and which of them it lacked; `folder` itself if none.

    A new token is found wherever its text stands, and is shown when text is decoded.
    """
    if not tokens:
        return folder, []
    from transformers import AddedToken

    tokenizer = load_tokenizer(folder)
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in tokens if token not in vocabulary]
    if not lacking:
        return folder, []
    digest = digest_of(
        kind="tokenizer",
        base=hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        special={name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        template=tokenizer.chat_template,
        new=lacking,
    )
    extended = storage.shard(digest)
    if read_manifest(extended) is None:
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in lacking])
        with making(storage, digest) as unfinished:
            tokenizer.save_pretrained(unfinished)
            seal(unfinished, kind="tokenizer")
    return extended, lacking
