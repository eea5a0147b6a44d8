"""The `uda` command: a tree of parsers. Each module of `uda/cli/commands/` is a command."""

import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from uda.cli import commands
from uda.cli.command_line import CommandParser, run_command
from uda.core.version import __version__

EXAMPLES = (
    ("adapt a model to unlabelled images; needs no download", "adapt --cfg digits_avh.yaml"),
    ("check everything, print the plan and its cost", "adapt --cfg visda_avh.yaml --dry-run"),
    ("leave each domain out in turn", "generalize --cfg rotated_digits_erm.yaml"),
    ("predict other images with a finished run", "predict runs/digits_avh/seed0 photos"),
    ("print what can be listed", "list"),
    ("shell completion, here for bash", "completion bash > ~/.local/share/bash-completion/completions/uda"),
)


def command_modules() -> dict[str, ModuleType]:
    """The module of each command, by the command's name."""
    names = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    return {name.replace("_", "-"): import_module(f"{commands.__name__}.{name}") for name in sorted(names)}


def first_line(module: ModuleType) -> str:
    """The first line of a command's module, which `--help` prints."""
    return (module.__doc__ or "").partition("\n")[0].rstrip(".")


def tree(program: str = "uda") -> CommandParser:
    """The parser of `uda`, with the parsers of all commands below it."""
    parser = CommandParser(prog=program)
    parser.explain(
        "Unsupervised domain adaptation by self-training, domain generalisation, and the study of visual hardness.",
        EXAMPLES,
        f"`{program} COMMAND --help` says more about each command.",
    )
    parser.add_argument("--version", action="version", version=f"uda {__version__}")
    for name, module in command_modules().items():
        module.add_to(parser.add_command(name, first_line(module)))
    return parser


def main(words: Sequence[str] | None = None, program: str = "uda") -> int:
    """Run the command line.

    Args:
        words: the arguments; None: the arguments of the process.
        program: the name by which the user called the command, for messages.

    Returns:
        The exit code: 0 done, 2 a user's mistake, 128 + signal interrupted. A command may add others.
    """
    return run_command(lambda: tree(program).carry_out(sys.argv[1:] if words is None else words))


def run_tool(program: str, name: str, words: Sequence[str] | None = None) -> int:
    """Run one command under another name: `tools/self_train.py` is `uda adapt`. Returns the exit code."""
    parser = CommandParser(prog=program)
    command_modules()[name].add_to(parser)
    return run_command(lambda: parser.carry_out(sys.argv[1:] if words is None else words))
