"""The command line of tools/hardness.py: a subcommand a part of the study."""

import argparse
import sys

from uda.command_line import CommandParser
from uda.errors import UserError
from uda.hardness.commands import add_commands

EXAMPLES = """\
examples:
  python tools/hardness.py score --model runs/cifar10_resnet/seed0 --data cifar10:test --out scores.csv
  python tools/hardness.py score --model resnet50.tv_in1k --data /data/imagenet/val --out scores.parquet
  python tools/hardness.py dynamics --cfg cifar10_resnet.yaml --cfg cifar10_wide.yaml
  python tools/hardness.py correlate --scores scores.csv --human cifar10h-counts.npy
  python tools/hardness.py all --cfg cifar10_study.yaml
  python tools/hardness.py fetch cifar10

`python tools/hardness.py COMMAND --help` says more about each."""


def parser() -> tuple[CommandParser, argparse._SubParsersAction]:
    """The argument parser, and its subcommands."""
    arguments = CommandParser(
        prog="hardness.py",
        description="The study of visual hardness (Chen et al., ICML 2020) on any classifier and any images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = arguments.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_commands(commands)
    return arguments, commands


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 a mistake of the user's, 130 interrupted."""
    arguments, commands = parser()
    words = list(sys.argv[1:] if argv is None else argv)
    options, rest = arguments.parse_known_args(words)
    takes = hasattr(options, "overrides")
    overrides = [word for word in rest if takes and "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest):
        unknown = [word for word in rest if word not in overrides]
        words_alone = not takes and all("=" in word for word in unknown)
        hint = f"; {options.command} takes no key=value words" if words_alone else ""
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    options.overrides = [*getattr(options, "overrides", []), *overrides]
    try:
        return options.run(options) or 0
    except UserError as error:
        for line in str(error).split("\n"):
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
