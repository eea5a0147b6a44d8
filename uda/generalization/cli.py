"""The command line of tools/generalize.py."""

import argparse

from uda.cli import supervise
from uda.config import load_config
from uda.generalization.config import GeneralizationConfig

EXAMPLES = """\
examples:
  python tools/generalize.py --cfg rotated_digits_erm.yaml                    each angle in turn, no download
  python tools/generalize.py --cfg pacs_avh_loss.yaml target=sketch           one target
  python tools/generalize.py --cfg pacs_avh_loss.yaml model.loss_options.scale=20 seed=1

A run that was interrupted goes on when the same command is given again."""


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    arguments = argparse.ArgumentParser(
        prog="generalize.py",
        description="Train on all domains but one and test on that one; each domain is left out in turn, or `target`.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arguments.add_argument("--cfg", metavar="FILE", help="a config: a path, or the name of one in configs/")
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting: target=sketch")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 a mistake of the user's, 128 + signal interrupted."""
    arguments = parser()
    options = arguments.parse_intermixed_args(argv)
    if not options.cfg:
        arguments.error("--cfg FILE is needed (or --help); for a first run: --cfg rotated_digits_avh_loss.yaml")

    def configs() -> list[GeneralizationConfig]:
        from uda.generalization.domains import names_of

        config = load_config(options.cfg, options.overrides, GeneralizationConfig)
        names = names_of(config)
        return [config.model_copy(update={"target": name}) for name in ([config.target] if config.target else names)]

    def run(config, log, ranks, interruption):
        from uda.generalization.run import LeaveOneOut

        return LeaveOneOut(config, log, ranks, interruption)

    return supervise(configs, run, lambda session, log: session.execute())
