"""The names that people give to models and runs. Each becomes part of a path, so each is checked once, here."""

from __future__ import annotations

import re
import secrets

from fm.errors import RequestError

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,99}")
_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: nothing in it is mistaken for something else when read aloud."""


def check_model_name(name: str, *, parts: tuple[int, ...] = (3,), field: str = "model") -> str:
    """Returns `name` if it is dot-separated words, as many as `parts` allows.

    Raises:
        RequestError: says which part is wrong.
    """
    words = name.split(".")
    shape = " or ".join(("catalog.schema.model" if count == 3 else "catalog.schema") for count in sorted(parts))
    if len(words) not in parts:
        raise RequestError(f"{field} {name!r} has {len(words)} part(s)", field=field, hint=f"write {shape}")
    for word in words:
        if not _PART.fullmatch(word):
            raise RequestError(
                f"{field} {name!r}: {word!r} is not a name",
                field=field,
                hint="letters, digits, _ and - only, starting with a letter, digit or _; at most 100 characters",
            )
    return name


def check_run_name(name: str) -> str:
    """Returns `name` if it can name a run.

    Raises:
        RequestError: it holds something else than letters, digits, `_`, `-` and single dots.
    """
    if not _RUN.fullmatch(name) or ".." in name:
        raise RequestError(
            f"name {name!r} can't name a run",
            field="name",
            hint="letters, digits, _, - and single dots, starting with a letter, digit or _; at most 100 characters",
        )
    return name


def is_run_ref(text: str) -> bool:
    """Whether `text` could be a run's name, its id, or the beginning of one."""
    return _RUN.fullmatch(text) is not None and ".." not in text


def check_alias(alias: str) -> str:
    """Returns `alias` if it can name a version; a bare number can't, since it would hide one.

    Raises:
        RequestError: it can't.
    """
    if not _PART.fullmatch(alias) or alias.isdigit():
        raise RequestError(
            f"alias {alias!r} can't name a version", field="alias", hint='write a word such as "prod"'
        )
    return alias


def check_team_name(name: str) -> str:
    """Returns `name` if it can name a team.

    Raises:
        RequestError: it can't.
    """
    if not _PART.fullmatch(name):
        raise RequestError(
            f"{name!r} can't name a team",
            field="team",
            hint="letters, digits, _ and - only, starting with a letter, digit or _; at most 100 characters",
        )
    return name


def check_user_name(name: str) -> str:
    """Returns `name` if it can name a user; an e-mail address can.

    Raises:
        RequestError: it can't.
    """
    if not _USER.fullmatch(name):
        raise RequestError(
            f"{name!r} can't name a user",
            field="user",
            hint="letters, digits and _.@+- only, starting with a letter, digit or _; at most 100 characters",
        )
    return name


def new_run_id() -> str:
    """An id that no other run has: ``run-`` and 60 random bits."""
    return "run-" + random_word(12)


def random_word(length: int) -> str:
    """So many random characters, five bits each."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_run_name(model: str) -> str:
    """A readable name for a run that was given none: the model's last word and six random characters."""
    word = re.sub(r"[^A-Za-z0-9]+", "-", model.rstrip("/").rsplit("/", 1)[-1]).strip("-").lower()[:40] or "model"
    return f"{word}-" + random_word(6)
