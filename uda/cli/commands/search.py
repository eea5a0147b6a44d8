"""Search settings without target labels: many runs of a config, judged by a validator."""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from uda.cli.command_line import CommandParser, say, tell_interrupted
from uda.cli.lists import space_names
from uda.cli.run_options import add_run
from uda.cli.supervise import SIGPIPE, announce

LISTS = ("spaces", "configs", "methods", "selectors", "validators")

EXAMPLES = (
    ("20 runs of the digits task", "--cfg digits_avh.yaml --space digits --trials 20"),
    ("check config and space, print the plan", "--cfg digits_avh.yaml --space digits --trials 20 --dry-run"),
    ("judge by another validator", "--cfg digits_avh.yaml --space digits --trials 20 --validator bnm"),
    ("keep the selector as it is", "--cfg digits_avh.yaml --space digits --trials 20 self_training.selector=avc"),
    ("print the spaces", "--list spaces"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Search settings without target labels. Each trial is a run of the config with other values from the space. A "
        "validator, a score without labels, judges its last report. Trial 0 is the config as it is. Optuna proposes "
        "the values (TPE) and ends trials early whose scores are low.",
        EXAMPLES,
        "The result is best.yaml, a config for `uda adapt`, and the page search.html. The same command goes on with an "
        "interrupted search. A larger --trials makes a finished one longer. It needs Optuna: "
        'pip install "uda-toolkit[search]".',
    )
    add_run(parser, "adapt", LISTS, "change a setting of all trials; it is then not searched")
    parser.add_argument(
        "--space",
        metavar="FILE",
        offers=space_names,
        help="the settings to search: a path, or a name in configs/spaces/",
    )
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="number of trials (default 20)")
    parser.add_argument(
        "--validator", metavar="NAME", help="judge trials by this validator (default: that of the config)"
    )
    parser.add_argument(
        "--out",
        dest="folder",
        type=Path,
        metavar="FOLDER",
        help="folder of the search (default: search_seed0 beside the config's run folder)",
    )
    parser.add_argument("--no-pruning", dest="pruning", action="store_false", help="run every trial to its end")
    parser.add_argument(
        "--keep-checkpoints",
        dest="keep",
        action="store_true",
        help="keep the checkpoints of all trials (default: of the best one)",
    )
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: CommandParser, options: argparse.Namespace) -> int:
    if not options.cfg or not options.space:
        parser.error("--cfg FILE and --space FILE are needed (or --list spaces, or --help)")
    announce([options.cfg])

    from uda.core.distributed import Ranks
    from uda.core.interruption import Interruption
    from uda.searches.search import Search
    from uda.training.device import set_up_process

    with Interruption() as interruption:
        log = partial(say, closed=lambda: interruption.ask(SIGPIPE))
        try:
            search = Search(
                options.cfg,
                options.space,
                options.trials,
                options.validator,
                options.folder,
                options.overrides,
                pruning=options.pruning,
                keep=options.keep,
                log=log,
                ranks=Ranks(world=int(os.environ.get("WORLD_SIZE", "1"))),
                interruption=interruption,
                command=sys.argv,
            )
            set_up_process(search.config.runtime)
            if options.dry_run:
                for line in (*search.plan(), "", "One run of the config as it is:", *search.one_run()):
                    log(line)
                log("dry run: config, space, data and network are right; nothing was written")
            else:
                search.run()
        except KeyboardInterrupt as interrupt:
            code, _ = tell_interrupted(interrupt, "the trials so far are saved; the same command goes on from there")
            return code
    return 0
