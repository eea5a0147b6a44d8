"""A run with several selectors: one source model, an ordinary run for each selector, and the choice among them.

The run trains and reports the source model. Its folder is then copied for each selector, as `selectors/<name>/`, and an
ordinary run resumes there. So each of these runs, called a branch, equals a run with that one selector. At the end the
run takes over the records, files and weights of the branch that the validator prefers.
"""

from collections.abc import Sequence
from pathlib import Path

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.report import AdaptationReport
from uda.adaptation.results import choose_selector
from uda.adaptation.run import AdaptationRun
from uda.core.distributed import Ranks
from uda.core.files import write_bytes, write_text
from uda.core.interruption import Interruption
from uda.data.domains import Domains
from uda.models.weights import load_network
from uda.report.run_record import MAP
from uda.training.checkpoint import Progress
from uda.training.records import CHOICE, REPORTS, read_results
from uda.training.run_folder import RunLog

#: What a branch gets of the run at the end of the source stage, besides the checkpoint: patterns of files.
OF_SOURCE = ("environment.json", "checkpoints/source.safetensors", "rounds/*.json", "rounds/source/*", "tb/**/*")
#: What the run takes over of the branch that is kept, besides records and final weights.
OF_KEPT = ("checkpoints/label_free.safetensors", "rounds/[0-9]*/*", MAP)


def adaptation_run(
    config: AdaptationConfig,
    log: RunLog | None = None,
    ranks: Ranks | None = None,
    interruption: Interruption | None = None,
) -> AdaptationRun:
    """The run of a config."""
    return (SelectorRuns if config.branches else AdaptationRun)(config, log, ranks, interruption)


class SelectorsReport(AdaptationReport):
    """The report of a run with several selectors."""

    branch: "BranchReport | None" = None
    """The report of the branch that runs now."""

    @property
    def seconds_left(self) -> float | None:
        return super().seconds_left if self.branch is None else self.branch.seconds_left


class BranchReport(AdaptationReport):
    """The report of a branch. With its page it writes that of the whole run."""

    whole: SelectorsReport

    def write_page(self, seconds: float | None = None, finished: bool = False, running: bool = True) -> None:
        super().write_page(seconds, finished, running)
        if running:  # a run that stops writes its page itself
            self.whole.write_page()


class SelectorRuns(AdaptationRun):
    """A run with several selectors."""

    report_class = SelectorsReport
    selector: str | None = None
    """The selector whose branch runs now, or was interrupted."""
    branch: "Branch | None" = None
    """This branch, once it is there."""

    @property
    def reached(self) -> str:
        if self.progress.stage != "round" or self.progress.round:
            return super().reached
        if self.selector is None:
            return "the source model"
        return f"selector {self.selector}" + (f", {self.branch.reached}" if self.branch else "")

    def new_report(self) -> SelectorsReport:
        report = super().new_report()
        report.repeats = len(self.config.branches)
        return report

    def train_stages(self) -> None:
        self._first_models()
        self.saved = self._latest = None  # they are of the source model, and take memory
        if self.progress.stage == "round":
            for number, selector in enumerate(self.config.branches):
                self._run(number, selector)
            self._keep()

    def _left(self) -> str:
        return "" if self.progress.stage == "round" else super()._left()  # the branch that goes on tells it

    def _run(self, number: int, selector: str) -> None:
        """Carry a branch out, or what is left of it."""
        count = len(self.config.branches)
        self.selector, self.branch = selector, None  # frees the memory of the branch before
        self.log(f"selector {selector}, {number + 1} of {count}")
        if self.ranks.is_main:
            self._begin(self.config.branches[selector])
        self.branch = Branch(self, selector, repeats=count - number)
        try:
            self.branch.execute()
        finally:
            self.branch.folder.release()

    def _begin(self, config: AdaptationConfig) -> None:
        """Give a new branch the source model. Its checkpoint comes last: a folder without one is begun again."""
        begun = any((config.folder / "checkpoints").glob("state-*.pt")) or (config.folder / "results.json").exists()
        if begun or self.progress.round:  # after more rounds were asked for, this run no longer has the source model
            return
        write_text(config.folder / "config.yaml", config.to_yaml())
        newest = self.checkpoints.newest.relative_to(self.folder.path)
        _copy(self.folder.path, config.folder, (*OF_SOURCE, newest.as_posix()))

    def _keep(self) -> None:
        """Choose a branch, and take over its records, files and weights."""
        seconds = 0.0
        if self.ranks.is_main:
            choice = self.records.write(CHOICE, choose_selector(self.config))
            kept, seconds = self.config.branches[choice["kept"]].folder, choice["seconds"]
            (self.folder.checkpoints / "label_free.safetensors").unlink(missing_ok=True)
            _copy(kept, self.folder.path, OF_KEPT)
            for number, report in enumerate(read_results(kept / "results.json")[1]):
                self.records.write(REPORTS["rounds"].format(number), report)
            load_network(self.engine.network, kept, self.description)
        self.ranks.broadcast_network(self.engine.network)
        self.save(Progress("done", self.rounds, seconds=seconds))


class Branch(AdaptationRun):
    """An ordinary run within a run with several selectors.

    Args:
        whole: the run that it belongs to.
        selector: its selector.
        repeats: number of branches that are not finished, with this one.
    """

    report_class = BranchReport

    def __init__(self, whole: SelectorRuns, selector: str, repeats: int):
        self.whole, self.selector, self.repeats = whole, selector, repeats
        self.command = whole.command
        # Its lines go to its own log and to that of the whole run, which shows them.
        log = RunLog(whole.log.silent, None if whole.log.quiet else whole.log)
        super().__init__(whole.config.branches[selector], log, whole.ranks, whole.interruption)

    def load_images(self) -> Domains:
        return self.whole.domains

    @property
    def going_on(self) -> str:
        new = self.progress.stage == "round" and not self.progress.round and not self.progress.begun
        return f"{self.folder.path} starts from the source model" if new else super().going_on

    def new_report(self) -> BranchReport:
        report = super().new_report()
        report.repeats, report.whole = self.repeats, self.whole.report
        self.whole.report.branch = report
        return report

    def train(self, *arguments, label: str, **others) -> dict[str, float]:
        return super().train(*arguments, label=f"{self.selector}, {label}", **others)


def _copy(folder: Path, to: Path, patterns: Sequence[str]) -> None:
    """Copy the files that match patterns, each of them whole or not at all."""
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                write_bytes(to / path.relative_to(folder), path.read_bytes())
