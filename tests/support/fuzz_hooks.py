"""What schemathesis checks beyond its own, loaded by its process: no answer shows what is only another team's."""

from __future__ import annotations

import json
import os
from typing import Any

import schemathesis

OTHERS: dict[str, list[str]] = json.loads(os.environ["FM_FUZZ_OTHERS"])
"""By token: words that only the other team's things have."""


@schemathesis.check
def shows_nothing_of_the_other_team(_context: Any, response: Any, _case: Any) -> None:
    token = response.request.headers.get("Authorization", "").removeprefix("Bearer ")
    if response.status_code >= 400:  # which repeats what was asked for, as "there is no run …"
        return
    for word in OTHERS.get(token, ()):
        assert word not in response.text, f"{word} is another team's"
