"""``ftctl``: the root command, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, Self, cast

import click

import fm
from fm.errors import FMError
from fm.heap import keep

INTERRUPTED = 130
"""Exit code at Ctrl-C, as in a shell: 128 and the signal's number."""
_COMMANDS = {
    "admin": "fm.cli.admin:admin",
    "agent": "fm.cli.agent:agent",
    "completion": "fm.cli.completion:completion",
    "context": "fm.cli.contexts:context",
    "create": "fm.cli.create:create",
    "data": "fm.cli.data:data",
    "doctor": "fm.cli.doctor:doctor",
    "gc": "fm.cli.gc:gc",
    "login": "fm.cli.contexts:login",
    "models": "fm.cli.models:models",
    "plan": "fm.cli.plan:plan",
    "preflight": "fm.cli.preflight:preflight",
    "runs": "fm.cli.runs:runs",
    "server": "fm.cli.server:server",
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        return cast(click.Command, getattr(importlib.import_module(module), attribute))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            raise click.UsageError(f"{error.message} Did you mean {near[0]}?" if near else error.message, ctx) from None


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fm.__version__, prog_name="ftctl")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--backend", metavar="NAME", help="A name, or a server's URL (default: FM_BACKEND, or see `context`).")
@click.pass_context
def main(ctx: click.Context, debug: bool, backend: str | None) -> None:
    """Fine-tune language models on machines that you own.

    Data goes to stdout, everything else to stderr. Exit codes: docs/exit-codes.md.
    """
    ctx.obj = {"debug": debug}
    if backend is not None:
        ctx.with_resource(fm.backend(backend))


def entry(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits."""
    # Else pydantic looks through every installed distribution for plugins, which no command needs: 50 ms.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # What importing makes lives on; looking through it again and again for garbage takes a tenth of a short command.
    gc.set_threshold(100_000)
    try:
        code = run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:  # before `run` was ready for it
        code = INTERRUPTED
    keep()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Runs the command line; returns its exit code."""
    # As in a shell, options of the root may stand anywhere.
    if debug := "--debug" in arguments:
        arguments = [argument for argument in arguments if argument != "--debug"]
    ctrl_c = _CtrlC()
    try:
        with ctrl_c:
            code = main.main(arguments, prog_name="ftctl", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # The reader of a pipe went away; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (FMError, click.ClickException) as error:
        if debug:
            _show_traceback()
        return _explain(error)
    except Exception as error:
        if ctrl_c.pressed:
            return INTERRUPTED
        if debug:
            _show_traceback()
            return 1
        click.echo(
            f"ftctl: internal error: {type(error).__name__}: {_clean(str(error))}\n"
            "  → run it again with --debug, and report what that shows",
            err=True,
        )
        return 1


class _CtrlC:
    """Whether it was pressed. What it meets may tell of it as any other error: pydantic, building a validator, as one
    of the schema; Python, compiling a character's name, as one of the syntax."""

    pressed = False

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is signal.default_int_handler and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGINT) == self._press:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        signal.default_int_handler(number, frame)


def _explain(error: FMError | click.ClickException) -> int:
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    click.echo(f"ftctl: {_clean(str(error))}", err=True)
    return error.exit_code


def _show_traceback() -> None:
    import traceback

    click.echo(traceback.format_exc(), err=True)


def _clean(text: str) -> str:
    from fm.display import plain

    return plain(text)


if __name__ == "__main__":
    entry()
