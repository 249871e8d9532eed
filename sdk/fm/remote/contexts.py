"""The servers that this user has logged in to: their names, addresses and tokens, in the user's own file.

It lies in the user's configuration folder and not in FM_HOME, which may differ from one command to the next.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fm.errors import NotFound, Unavailable
from fm.files import make_private, write_json


class Context(BaseModel):
    """A server as its user knows it. The token stands in no repr."""

    model_config = ConfigDict(frozen=True)

    url: str
    token: str = Field(repr=False)


class Contexts(BaseModel):
    """All of them, by name; `current` is used where nothing else is said."""

    model_config = ConfigDict(frozen=True)

    current: str | None = None
    contexts: dict[str, Context] = {}

    @classmethod
    def read(cls) -> Contexts:
        """Those of this user.

        Raises:
            Unavailable: the file is damaged, or others may read it.
        """
        path = contexts_path()
        try:
            if path.stat().st_mode & 0o077:
                raise Unavailable(f"others may read {path}, which holds tokens", hint=f"chmod 600 {path}")
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            raise Unavailable(f"can't read {path}", hint="remove it, and log in again") from error

    def write(self) -> None:
        """Keeps them, for this user alone."""
        path = contexts_path()
        make_private(path.parent)
        write_json(path, self.model_dump())

    def get(self, name: str) -> Context:
        """The context of that name.

        Raises:
            NotFound: there is none.
        """
        if name not in self.contexts:
            hint = "`ftctl context list` shows all; `ftctl login` adds one"
            raise NotFound(f"there is no context {name!r}", hint=hint)
        return self.contexts[name]

    def token_for(self, url: str) -> str | None:
        """The token of the server at `url`, if the user has logged in there."""
        return next((context.token for context in self.contexts.values() if context.url == url), None)

    def with_context(self, name: str, context: Context, *, use: bool) -> Contexts:
        """These and one more, or another in its place."""
        return Contexts(current=name if use else self.current, contexts={**self.contexts, name: context})

    def without(self, name: str) -> Contexts:
        """These but for one."""
        self.get(name)
        left = {key: context for key, context in self.contexts.items() if key != name}
        return Contexts(current=None if self.current == name else self.current, contexts=left)

    def using(self, name: str | None) -> Contexts:
        """These, with another current one; None: this machine's own backend."""
        if name is not None:
            self.get(name)
        return Contexts(current=name, contexts=self.contexts)


def contexts_path() -> Path:
    """The file that they are kept in."""
    return Path("~/.config/ftctl/contexts.json").expanduser()
