"""The command line of tools/self_train.py and tools/adapt.py."""

import argparse
import itertools
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import uda.generalization.config
import uda.hardness.config  # noqa: F401  (kinds of config register themselves)
from uda.adaptation.config import AdaptationConfig
from uda.command_line import CommandParser, say
from uda.config import RunConfig
from uda.config_files import ROOT, read_config
from uda.errors import UserError
from uda.interruption import HOW_TO_GO_ON, Interrupted, Interruption

if TYPE_CHECKING:
    from uda.distributed import Ranks
    from uda.rounds import Run
    from uda.run_folder import RunLog
    from uda.session import Session

C = TypeVar("C", bound=RunConfig)

#: Characters in a line of `--list`.
LINE = 100

SIGPIPE = getattr(signal, "SIGPIPE", signal.SIGTERM)  # Windows has none

#: Seconds by which a job's signal may reach one process later than another.
LATER_BY = 0.5

LISTS = (
    *("configs", "methods", "selectors", "regularizers", "losses", "unlabelled_losses", "validators"),
    *("datasets", "backbones"),
)

EXAMPLES = """\
examples:
  python tools/self_train.py --cfg digits_avh.yaml                    the default task, no download
  python tools/self_train.py --cfg visda_avh.yaml                     VisDA-2017 in datasets/ or $UDA_DATA
  python tools/self_train.py --cfg visda_avh.yaml --dry-run           check everything, print plan and cost
  python tools/self_train.py --cfg visda_avh.yaml self_training.selector=softmax seed=1
  python tools/self_train.py --cfg pacs_avh.yaml data.source=photo data.target=sketch
  python tools/self_train.py --cfg digits_mcd.yaml                    another method on the same data
  python tools/self_train.py --list selectors
  torchrun --nproc_per_node=8 tools/self_train.py --cfg visda_avh.yaml   a process a GPU, one job

A run that was interrupted goes on when the same command is given again."""


def parser(program: str = "self_train.py") -> CommandParser:
    """The argument parser of tools/self_train.py, or of tools/adapt.py: one command under two names."""
    arguments = CommandParser(
        prog=program,
        description="Adapt a model from labelled source images to unlabelled target images, by rounds of\n"
        "self-training or by another of the methods that `--list methods` prints.",
        epilog=EXAMPLES.replace("self_train.py", program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--cfg", metavar="FILE", help="a config: a path, or the name of one in configs/")
    arguments.add_argument(
        "--dry-run", action="store_true", help="check config, data and model, print plan and cost, stop"
    )
    arguments.add_list(LISTS)
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting: self_training.rounds=3")
    return arguments


def listing(what: str, kind: type[RunConfig] = AdaptationConfig) -> str:
    """A registry's names with a line each; of methods and configs those of one kind of run."""
    if what == "configs":
        paths = sorted((ROOT / "configs").glob("*.yaml"))
        own = [path for path in paths if read_config(path)[0].keys() <= kind.model_fields.keys()]
        rows = [(path.name, _first_comment(path)) for path in own]
    elif what == "datasets":
        from uda.data.cards import CARDS

        rows = CARDS.describe()
    else:
        from uda.classification import LOSSES
        from uda.methods import UNLABELLED_LOSSES
        from uda.models import BACKBONES
        from uda.regularizers import REGULARIZERS
        from uda.selectors import SELECTORS
        from uda.validators import VALIDATORS

        registries = {
            "methods": kind.methods(),
            "selectors": SELECTORS,
            "regularizers": REGULARIZERS,
            "losses": LOSSES,
            "unlabelled_losses": UNLABELLED_LOSSES,
            "validators": VALIDATORS,
            "backbones": BACKBONES,
        }
        rows = registries[what].describe()
    width = max(len(name) for name, _ in rows)
    indent = " " * (width + 2)
    lines = [textwrap.fill(f"{name:<{width}}  {text}", LINE, subsequent_indent=indent) for name, text in rows]
    if what == "backbones":
        import timm

        lines.append(f"...and each of timm's {len(timm.list_models())} models by its name (timm.list_models())")
    return "\n".join(lines)


def _first_comment(path: Path) -> str:
    """The first sentence of the comment at a config's head, which may go on over several lines."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").split("\n"))
    sentence, end, _ = " ".join(line.removeprefix("#").strip() for line in lines).partition(". ")
    return sentence + end.strip()


def main(argv: list[str] | None = None, program: str = "self_train.py") -> int:
    """Run the command line; returns the exit code: 0 done, 2 a mistake of the user's, 128 + signal interrupted."""
    arguments = parser(program)
    options = arguments.parse_intermixed_args(argv)
    if options.list is not None:
        print(arguments.kind_to_list(options.list, LISTS, listing))
        return 0
    if not options.cfg:
        given = next((word for word in options.overrides if word.endswith((".yaml", ".yml")) and "=" not in word), None)
        example = f"did you mean --cfg {given}?" if given else "for a first run: --cfg digits_avh.yaml"
        arguments.error(f"--cfg FILE is needed (or --list WHAT, or --help); {example}")

    def run(config: AdaptationConfig, log: "RunLog", ranks: "Ranks", interruption: Interruption) -> "Session":
        from uda.methods import ADAPTATION_METHODS
        from uda.rehearsal import Rehearsal, missing_data
        from uda.rounds import Run

        method = ADAPTATION_METHODS[config.method]
        reads = {"self_training": method.rounds, "adaptation": method.adapts}
        for key in (word.partition("=")[0] for word in options.overrides):
            if not reads.get(key.split(".")[0], True):
                log(f"note: method '{config.method}' does not read {key}")
        if options.dry_run and (missing := missing_data(config, ranks)):
            return Rehearsal(config, missing, log, ranks, interruption)
        return Run(config, log, ranks, interruption)

    def act(session: "Run", log: "RunLog") -> None:
        from uda.plan import dry_run
        from uda.rehearsal import Rehearsal, dry_run_without_data

        if isinstance(session, Rehearsal):
            log(dry_run_without_data(session))
        elif options.dry_run and not session.finished:
            log(dry_run(session))
        else:
            session.execute()

    return supervise(lambda: [AdaptationConfig.load(options.cfg, options.overrides)], run, act)


def supervise(
    configs: Callable[[], Sequence[C]],
    run: "Callable[[C, RunLog, Ranks, Interruption], Session]",
    act: "Callable[[Session, RunLog], None]",
    after: "Callable[[Ranks], None]" = lambda ranks: None,
) -> int:
    """Carry out some runs, one after the other, and say what became of them.

    Args:
        configs: read them; mistakes in them are the user's.
        run: makes a run.
        act: brings it to its end.
        after: called when all runs have come to their end.

    Returns:
        The exit code: 0 done, 2 a mistake of the user's, 128 + signal interrupted.
    """
    with Interruption() as interruption:
        try:
            wanted = configs()
            from uda.distributed import start

            with start(wanted[0].runtime.device) as ranks:
                code = 0
                for config in wanted:
                    code = code or _carry_out(config, run, act, ranks, interruption)
                if not code:
                    after(ranks)
                ranks.in_order = code == 0
                return code
        except UserError as error:
            return _mistake(error)
        except KeyboardInterrupt as interrupt:
            return _interrupted(interrupt, "nothing was begun")


def _carry_out(
    config: C,
    run: "Callable[[C, RunLog, Ranks, Interruption], Session]",
    act: "Callable[[Session, RunLog], None]",
    ranks: "Ranks",
    interruption: Interruption,
) -> int:
    from uda.device import set_up_process
    from uda.distributed import RankLostError
    from uda.run_folder import RunLog

    log = RunLog(not ranks.is_main, lambda line: say(line, closed=lambda: interruption.ask(SIGPIPE)))
    session = None
    try:
        try:
            set_up_process(config.runtime)
            session = run(config, log, ranks, interruption)
            act(session, log)
        except RankLostError:
            with interruption.deferred():  # the signal by which the other process left may be on its way here
                time.sleep(LATER_BY)
            raise
    except UserError as error:
        log.note(f"error: {error}")
        return _mistake(error, ranks)
    except KeyboardInterrupt as interrupt:
        if session is not None and not session.finished and session.checkpoints.newest is not None:
            left = f"saved at {session.progress.describe()}; {HOW_TO_GO_ON}"
        else:  # before a checkpoint was read or written
            earlier = any((config.folder / "checkpoints").glob("state-*.pt"))
            left = f"an earlier start has saved; {HOW_TO_GO_ON}" if earlier else "nothing was saved yet"
        return _interrupted(interrupt, left, log)
    return 0


def _interrupted(interrupt: KeyboardInterrupt, left: str, log: "RunLog | None" = None) -> int:
    message = f"interrupted by {interrupt if isinstance(interrupt, Interrupted) else 'SIGINT'}: {left}"
    if log is None or not log.silent:
        print(f"\n{message}", file=sys.stderr, flush=True)
    if log is not None:
        log.note(message)
    return interrupt.exit_code if isinstance(interrupt, Interrupted) else 130


def _mistake(error: UserError, ranks: "Ranks | None" = None) -> int:
    who = ""
    if ranks is not None and not ranks.is_main:
        # Mostly rank 0 has met the same error, has said so and ends the job.
        time.sleep(2)
        who = f"[process {ranks.rank}] "
    for line in str(error).split("\n"):
        print(f"{who}error: {line}", file=sys.stderr, flush=True)
    return 2
