"""Print a script that completes the `uda` command in bash, zsh or fish."""

import argparse

from uda.cli.command_line import CommandParser
from uda.cli.completion import SHELLS, script

EXAMPLES = (
    ("bash", "bash > ~/.local/share/bash-completion/completions/uda"),
    ("zsh, in a file that ~/.zshrc sources", "zsh > ~/.uda-completion.zsh"),
    ("fish", "fish > ~/.config/fish/completions/uda.fish"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Print a script that completes the commands of `uda`, their flags, and the names of configs, tables and "
        "data sets. The script contains the present names. Write it again after an update.",
        EXAMPLES,
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from uda.cli.main import tree

    print(script(options.shell, tree()), end="")
