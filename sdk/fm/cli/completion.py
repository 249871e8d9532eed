"""``ftctl completion``: the script that makes a shell complete commands, flags and run names."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash:  eval "$(ftctl completion bash)"     in ~/.bashrc
    zsh:   eval "$(ftctl completion zsh)"      in ~/.zshrc
    fish:  ftctl completion fish > ~/.config/fish/completions/ftctl.fish
    """
    from click.shell_completion import get_completion_class

    from fm.cli.main import main

    # Looked up by click, which knows its own three shells.
    script = get_completion_class(shell)
    assert script is not None
    text = script(main, {}, "ftctl", "_FTCTL_COMPLETE")
    click.echo(text.source_template % text.source_vars())
