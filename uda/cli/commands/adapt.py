"""Adapt a model from labelled source images to unlabelled target images."""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from uda.cli.command_line import CommandParser
from uda.cli.run_options import add_run
from uda.cli.supervise import supervise

if TYPE_CHECKING:
    from uda.adaptation.config import AdaptationConfig
    from uda.adaptation.run import AdaptationRun
    from uda.core.distributed import Ranks
    from uda.core.interruption import Interruption
    from uda.training.run_folder import RunLog
    from uda.training.session import Session

LISTS = (
    *("configs", "methods", "selectors", "regularizers", "losses", "unlabelled_losses", "validators"),
    *("loggers", "datasets", "backbones"),
)

EXAMPLES = (
    ("the default task, no download", "--cfg digits_avh.yaml"),
    ("VisDA-2017 in datasets/ or $UDA_DATA", "--cfg visda_avh.yaml"),
    ("check everything, print plan and cost", "--cfg visda_avh.yaml --dry-run"),
    (
        "the better of two selectors, by a score without labels",
        "--cfg digits_avh.yaml 'self_training.selector=[softmax,avc]' output=runs/both",
    ),
    (
        "another selector and another seed",
        "--cfg visda_avh.yaml self_training.selector=softmax seed=1 output=runs/softmax",
    ),
    ("other domains", "--cfg pacs_avh.yaml data.source=photo data.target=sketch"),
    ("another method on the same data", "--cfg digits_mcd.yaml"),
    ("print the selectors", "--list selectors"),
    ("one job with one process per GPU", "torchrun --nproc_per_node=8 {script} --cfg visda_avh.yaml"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Adapt a model from labelled source images to unlabelled target images. The default method is self-training "
        "in rounds. `--list methods` prints all methods.",
        EXAMPLES,
        "The same command resumes an interrupted run.",
    )
    add_run(parser, "adapt", LISTS, "change a setting, such as self_training.rounds=3")
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: CommandParser, options: argparse.Namespace) -> int:
    if not options.cfg:
        given = next((word for word in options.overrides if word.endswith((".yaml", ".yml")) and "=" not in word), None)
        example = f"did you mean --cfg {given}?" if given else "for a first run: --cfg digits_avh.yaml"
        parser.error(f"--cfg FILE is needed (or --list WHAT, or --help); {example}")

    def read() -> "list[AdaptationConfig]":
        from uda.adaptation.config import AdaptationConfig

        return [AdaptationConfig.load(options.cfg, options.overrides)]

    def run(config: "AdaptationConfig", log: "RunLog", ranks: "Ranks", interruption: "Interruption") -> "Session":
        from uda.adaptation.checks import unread_notes
        from uda.adaptation.dry_run import RunWithoutData, missing_data
        from uda.adaptation.selector_runs import adaptation_run

        for note in unread_notes(config, [word.partition("=")[0] for word in options.overrides]):
            log(note)
        if options.dry_run and (missing := missing_data(config, ranks)):
            return RunWithoutData(config, missing, log, ranks, interruption)
        return adaptation_run(config, log, ranks, interruption)

    def act(session: "AdaptationRun", log: "RunLog") -> None:
        from uda.adaptation.dry_run import RunWithoutData, dry_run, dry_run_without_data

        if isinstance(session, RunWithoutData):
            log(dry_run_without_data(session))
        elif options.dry_run and not session.finished:
            log(dry_run(session))
        else:
            session.execute()

    return supervise(read, run, act, files=[options.cfg])
