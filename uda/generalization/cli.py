"""The command line of tools/generalize.py."""

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from uda.cli import listing, supervise
from uda.command_line import CommandParser
from uda.config_files import ConfigError
from uda.generalization.config import GeneralizationConfig

if TYPE_CHECKING:
    from uda.distributed import Ranks
    from uda.generalization.run import LeaveOneOut
    from uda.interruption import Interruption
    from uda.run_folder import RunLog

LISTS = ("configs", "methods", "losses", "datasets", "backbones")

EXAMPLES = """\
examples:
  python tools/generalize.py --cfg rotated_digits_erm.yaml                    each angle in turn, no download
  python tools/generalize.py --cfg rotated_digits_erm.yaml --cfg rotated_digits_avh_loss.yaml   side by side
  python tools/generalize.py --cfg pacs_avh_loss.yaml target=sketch           one target
  python tools/generalize.py --cfg pacs_avh_loss.yaml model.loss_options.scale=20 seed=1
  python tools/generalize.py --cfg pacs_avh_loss.yaml --dry-run               check everything, print plan and cost
  python tools/generalize.py --list losses

A run that was interrupted goes on when the same command is given again."""


def parser() -> CommandParser:
    """The argument parser."""
    arguments = CommandParser(
        prog="generalize.py",
        description="Train on all domains but one and test on that one; each domain is left out in turn, or `target`.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument(
        "--cfg",
        metavar="FILE",
        action="append",
        help="a config: a path, or the name of one in configs/; several are run one after the other and compared",
    )
    arguments.add_argument(
        "--dry-run", action="store_true", help="check config, data and model, print plan and cost, stop"
    )
    arguments.add_list(LISTS)
    arguments.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change a setting, of every config: target=sketch"
    )
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 a mistake of the user's, 128 + signal interrupted."""
    arguments = parser()
    options = arguments.parse_intermixed_args(argv)
    if options.list is not None:
        print(arguments.kind_to_list(options.list, LISTS, lambda what: listing(what, GeneralizationConfig)))
        return 0
    if not options.cfg:
        arguments.error("--cfg FILE is needed (or --help); for a first run: --cfg rotated_digits_avh_loss.yaml")
    configs: list[GeneralizationConfig] = []

    def runs() -> list[GeneralizationConfig]:
        from uda.generalization.study import runs_of

        configs.extend(_load(options.cfg, options.overrides))
        return runs_of(configs)

    def run(config: GeneralizationConfig, log: "RunLog", ranks: "Ranks", interruption: "Interruption") -> "LeaveOneOut":
        from uda.generalization.run import LeaveOneOut

        return LeaveOneOut(config, log, ranks, interruption)

    def act(session: "LeaveOneOut", log: "RunLog") -> None:
        if options.dry_run and not session.finished:
            log(f"{session.plan()}\n{session.cost()}")
        else:
            session.execute()

    def after(ranks: "Ranks") -> None:
        if options.dry_run:
            but = " but features of a frozen backbone" if any(c.training.frozen_backbone for c in configs) else ""
            if ranks.is_main:
                print(f"dry run: config, data and network are right; nothing was written{but}")
        elif ranks.is_main:
            from uda.generalization.study import write_summary

            write_summary(configs)

    return supervise(runs, run, act, after)


def _load(files: Sequence[str], overrides: Iterable[str]) -> list[GeneralizationConfig]:
    """Some configs. Raises ConfigError with the mistakes of all, each said once."""
    configs, problems = [], []
    for file in files:
        try:
            configs.append(GeneralizationConfig.load(file, overrides))
        except ConfigError as error:
            problems += str(error).split("\n")
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return configs
