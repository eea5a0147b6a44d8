"""Train on all domains except one, test on that one, and repeat for each domain."""

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from uda.cli.command_line import CommandParser
from uda.cli.run_options import add_run
from uda.cli.supervise import supervise

if TYPE_CHECKING:
    from uda.core.distributed import Ranks
    from uda.core.interruption import Interruption
    from uda.generalization.config import GeneralizationConfig
    from uda.generalization.run import GeneralizationRun
    from uda.training.run_folder import RunLog

LISTS = ("configs", "methods", "losses", "datasets", "backbones")

EXAMPLES = (
    ("leave each angle out in turn, no download", "--cfg rotated_digits_erm.yaml"),
    ("two configs side by side", "--cfg rotated_digits_erm.yaml --cfg rotated_digits_avh_loss.yaml"),
    ("one domain only", "--cfg pacs_avh_loss.yaml target=sketch"),
    ("other settings", "--cfg pacs_avh_loss.yaml model.loss_options.scale=20 seed=1"),
    ("check everything, print plan and cost", "--cfg pacs_avh_loss.yaml --dry-run"),
    ("print the losses", "--list losses"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Train on all domains except one and test on that one. Each domain is left out in turn. If the config has a "
        "`target`, only that domain is left out.",
        EXAMPLES,
        "The same command resumes an interrupted run.",
    )
    change = "change a setting of every config, such as target=sketch"
    add_run(parser, "generalize", LISTS, change, several="run and compare several")
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: CommandParser, options: argparse.Namespace) -> int:
    if not options.cfg:
        parser.error("--cfg FILE is needed (or --help); for a first run: --cfg rotated_digits_avh_loss.yaml")
    configs: list[GeneralizationConfig] = []

    def runs() -> "list[GeneralizationConfig]":
        from uda.generalization.summary import runs_of

        configs.extend(_load(options.cfg, options.overrides))
        return runs_of(configs)

    def run(
        config: "GeneralizationConfig", log: "RunLog", ranks: "Ranks", interruption: "Interruption"
    ) -> "GeneralizationRun":
        from uda.generalization.run import GeneralizationRun

        return GeneralizationRun(config, log, ranks, interruption)

    def act(session: "GeneralizationRun", log: "RunLog") -> None:
        if options.dry_run and not session.finished:
            log(f"{session.plan()}\n{session.cost()}")
        else:
            session.execute()

    def after(ranks: "Ranks") -> None:
        if options.dry_run and ranks.is_main:
            print("dry run: config, data and network are right; nothing was written")
        elif ranks.is_main:
            from uda.generalization.summary import write_summary

            write_summary(configs)

    return supervise(runs, run, act, after, files=options.cfg)


def _load(files: Sequence[str], overrides: Iterable[str]) -> "list[GeneralizationConfig]":
    """Load configs. Raises ConfigError with the mistakes of all of them, each printed once."""
    from uda.core.yaml_files import ConfigError
    from uda.generalization.config import GeneralizationConfig

    configs, problems = [], []
    for file in files:
        try:
            configs.append(GeneralizationConfig.load(file, overrides))
        except ConfigError as error:
            problems += str(error).split("\n")
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return configs
