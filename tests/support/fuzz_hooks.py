"""What schemathesis checks beyond its own, loaded by its process: no answer shows what is only another team's."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import unquote

import schemathesis

OTHERS: dict[str, list[str]] = json.loads(os.environ["FM_FUZZ_OTHERS"])
"""By token: words that only the other team's things have."""


@schemathesis.check
def shows_nothing_of_the_other_team(_context: Any, response: Any, _case: Any) -> None:
    token = response.request.headers.get("Authorization", "").removeprefix("Bearer ")
    body = response.request.body or b""
    asked = unquote(response.request.url) + (body if isinstance(body, str) else body.decode("utf-8", "replace"))
    for word in OTHERS.get(token, ()):
        # An answer may repeat what was asked for, as in "there is no run …"; a thing has more words than that one.
        assert word in asked or word not in response.text, f"{word} is another team's"
