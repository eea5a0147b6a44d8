"""A search: trials of a config with values of a space, judged by a score that needs no target labels."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.core.files import OutputError, remove_temporaries, write_text
from uda.core.interruption import Interruption
from uda.searches import lines
from uda.searches.page import write_page
from uda.searches.results import BEST, oracle_of, write_best, write_summary
from uda.searches.runs import Record, SharedImages, WatchedRun, records_in
from uda.searches.sampling import check_installed, is_hopeless, propose
from uda.searches.state import SearchState
from uda.searches.trials import Trial, best_of, read_trials, trial_folder, write_trial
from uda.training.config import RunConfig, differing_keys
from uda.training.records import read_record
from uda.training.run_folder import MOST_DIFFERENCES, RunLog, locked

#: If so many trials fail from the first one on, the search ends.
MOST_FAILED = 3
#: Seconds between two pages of a search that goes on.
PAGE_EVERY = 30.0
#: The file that tells what a search is.
SEARCH = "search.yaml"


class Pruned(Exception):
    """A trial ends early, because its scores are low."""


@dataclass(frozen=True)
class SearchResult:
    """A finished search."""

    folder: Path
    """Folder of the search."""
    best: Path
    """The config of the best trial, which `uda adapt` takes."""
    values: dict[str, Any]
    """The best values of the settings, by dotted key."""
    score: float
    """The best trial's score, which needs no target labels."""
    trials: list[Trial]
    """All trials, in order."""


class Search(SearchState):
    """A search in a folder. It goes on from the trials that are there.

    Args:
        config: name or path of a config, or a config.
        space: name or path of a space, or its content.
        trials: number of trials. Trial 0 is the config as it is.
        validator: the score that judges a trial, at its last report; None: that of the config.
        folder: folder of the search; None: `search_seed<N>` beside the config's run folder.
        overrides: changes of the config. A setting that is given is left out of the space.
        pruning: end trials early whose scores are low.
        keep: keep the checkpoints of all trials, and not only those of the best one.
        log: prints one line.
        ranks: the processes of the job, one only.
        interruption: asked at every step whether to save and stop.
        command: the command line, for the runs' environment.json.

    Raises:
        UserError: a mistake in the config or the space, or the folder holds another search. Nothing was written.
    """

    def __init__(
        self,
        config: str | Path | RunConfig,
        space: str | Path | Mapping[str, Any],
        trials: int,
        validator: str | None = None,
        folder: str | Path | None = None,
        overrides: Iterable[str] | Mapping[str, Any] = (),
        *,
        pruning: bool = True,
        keep: bool = False,
        log: Callable[[str], None] = print,
        ranks: Ranks | None = None,
        interruption: Interruption | None = None,
        command: Sequence[str] | None = None,
    ):
        self.ranks = ranks or Ranks()
        if self.ranks.world > 1:
            raise UserError("a search works in one process; start it without torchrun (its trials run one by one)")
        if trials < 1:
            raise UserError(f"`trials`: must be at least 1; got {trials}")
        check_installed()
        super().__init__(config, space, trials, validator, folder, overrides, pruning)
        self.keep = keep
        self.log = log
        self.interruption = interruption or Interruption()
        self.command = command
        self._shared = SharedImages()
        self._page_written = time.monotonic()
        self._check_folder()
        self.trials = read_trials(self.folder)

    # The folder

    def _identity(self) -> dict[str, Any]:
        """What the search is. Another one needs another folder."""
        return {
            "config": None if self.config_name is None else str(self.config_name),
            "validator": self.validator,
            "pruning": self.pruning,
            "space": self.space.entries(),
            "settings": self.config.model_dump(mode="json"),
        }

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"`folder`: {self.folder} is a file, not a folder")
        path = self.folder / SEARCH
        if not path.is_file():
            if self.folder.is_dir() and not all(entry.name.startswith(".") for entry in self.folder.iterdir()):
                raise UserError(f"`folder`: {self.folder} is neither empty nor a search's; choose another one")
            return
        try:
            saved = yaml.safe_load(path.read_text(encoding="utf-8"))
            differences = differing_keys(self.config, saved["settings"])
            now = self._identity()
            for key in ("validator", "pruning"):
                if saved[key] != now[key]:
                    differences.append(f"{key}: {saved[key]} -> {now[key]}")
            before, after = saved["space"], now["space"]
            for key in before.keys() | after.keys():
                if before.get(key) != after.get(key):
                    differences.append(f"space, {key}: {before.get(key, 'none')} -> {after.get(key, 'none')}")
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} cannot be read; choose another `folder`, or delete {self.folder}") from None
        if differences:
            shown = "; ".join(sorted(differences)[:MOST_DIFFERENCES])
            if len(differences) > MOST_DIFFERENCES:
                shown += f"; and {len(differences) - MOST_DIFFERENCES} more"
            raise UserError(
                f"{self.folder} holds another search. It differs in (there -> here) {shown}; "
                "choose another `folder`, or delete that one"
            )

    def _open_folder(self) -> IO[str] | None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"`folder`: {self.folder} cannot be written: {error.strerror}") from None
        lock = locked(self.folder, "`folder`", "another one")
        remove_temporaries(self.folder)
        self.trials = read_trials(self.folder)  # another process may have worked here since
        if not (self.folder / SEARCH).is_file():
            text = yaml.safe_dump(self._identity(), sort_keys=False, allow_unicode=True)
            write_text(self.folder / SEARCH, f"# What this search is. `uda search` reads it when it goes on.\n{text}")
        return lock

    # Execution

    def plan(self) -> list[str]:
        """Lines that describe the search."""
        return lines.plan(self)

    def one_run(self) -> list[str]:
        """Lines with the plan and the cost of one run of the config, and the time of all trials. Nothing is run."""
        first = Trial(0, self.space.values_of(self.config))
        session = self._session(first, lambda records, more: None)
        plan, trials = session.plan(), session.trials()
        cost = trials.cost(session.engine, session.workers)
        return [*plan.split("\n"), *cost.split("\n"), "", *lines.whole_cost(self, trials.seconds(session.ranks.world))]

    def run(self) -> SearchResult:
        """Run the trials that are missing, and write the results.

        Raises:
            UserError: no trial has a score, or the first ones have all failed.
        """
        lock = self._open_folder()
        try:
            if self.finished:
                self.log(f"{self.folder} is finished: {lines.counted(self.trials)}")
            else:
                for line in self.plan():
                    self.log(line)
                self._run_missing()
            self._write(page=True)
            best = best_of(self.trials)
            if best is None:
                errors = [trial.error for trial in self.trials if trial.error]
                raise UserError(
                    f"no trial was finished, so there is no best config{f'; {errors[-1]}' if errors else ''}"
                )
            for line in lines.result(self, best, self._oracle()):
                self.log(line)
            return SearchResult(self.folder, self.folder / BEST, best.values, best.score, self.trials)
        except KeyboardInterrupt:
            self._write(page=True)
            raise
        finally:
            if lock is not None:
                lock.close()

    def _run_missing(self) -> None:
        for number in itertools.count():
            if number >= self.wanted:
                return
            if number == len(self.trials):
                values = propose(self.space, self.trials, self.config.seed) if number else {}
                trial = Trial(number, values or self.space.values_of(self.config))
                write_trial(self.folder, trial)  # a trial that is killed is found by its record
                self.trials.append(trial)
            trial = self.trials[number]
            if trial.ended:
                continue
            self._run_trial(trial)
            write_trial(self.folder, trial)
            self._tidy()
            self._write(page=time.monotonic() > self._page_written + PAGE_EVERY)
            for line in lines.trial_lines(self, trial):
                self.log(line)
            if [one.state for one in self.trials] == ["failed"] * MOST_FAILED:
                raise UserError(
                    f"the first {MOST_FAILED} trials have failed: {trial.error}; correct the config or the space, and "
                    "choose another `folder`"
                )

    def _session(self, trial: Trial, watch: Callable[[Sequence[Record], bool], None]) -> WatchedRun:
        """The run of a trial. Its lines go to its log.txt only."""
        given = self.config_of(trial), RunLog(show=None), self.ranks, self.interruption
        return self.kind.session(*given, watch=watch, shared=self._shared)

    def _run_trial(self, trial: Trial) -> None:
        """Run a trial, or go on with it, and set its state."""
        session, folder, begun = None, trial_folder(self.folder, trial.number), time.monotonic()

        def watch(records: Sequence[Record], more: bool) -> None:
            known = len(trial.scores)
            self._read(trial, records)
            # Every report is looked at once, and the last one ends the run anyway.
            if self.pruning and more and len(trial.scores) > known and is_hopeless(self.space, self.trials, trial):
                raise Pruned

        trial.scores = []
        try:
            session = self._session(trial, watch)
            session.command = self.command
            session.execute()
            self._read(trial, records_in(folder))
            trial.state = "finished"
            if trial.score is None:
                trial.state, trial.error = "failed", f"the last report has no score by '{self.validator}'"
        except Pruned:
            trial.state = "pruned"
        except OutputError:
            raise
        except UserError as error:
            if session is None and trial.number == 0:
                raise  # the config itself, or its data
            trial.state, trial.error = "failed", str(error)
        finally:
            if session is not None:
                session.folder.release()
        results = folder / "results.json"
        trial.seconds = read_record(results)["seconds"] if results.is_file() else time.monotonic() - begun
        if session is not None and not results.is_file():
            trial.seconds = session.seconds

    def _read(self, trial: Trial, records: Sequence[Record]) -> None:
        """Note the scores of a trial's reports. Nothing else of the records is read here."""
        scores = [self.kind.scores(record) for record in records]
        trial.scores = [found.get(self.validator) for found in scores]
        trial.validators = scores[-1] if scores else {}

    def _tidy(self) -> None:
        """Remove the checkpoints of all ended trials but the best. Their records stay."""
        best = best_of(self.trials)
        for trial in self.trials if not self.keep else ():
            if trial.ended and trial is not best:
                folder = trial_folder(self.folder, trial.number) / "checkpoints"
                for file in (*folder.glob("*.pt"), *folder.glob("*.safetensors")):
                    file.unlink(missing_ok=True)

    # Results

    def _oracle(self) -> dict[int, float | None]:
        """The oracle accuracy at the last report of each trial, for readers only."""
        return {trial.number: oracle_of(trial_folder(self.folder, trial.number), self.kind) for trial in self.trials}

    def _write(self, page: bool) -> None:
        best, oracle = best_of(self.trials), self._oracle()
        write_summary(self, best, oracle)
        if best is not None:
            write_best(self, best)
        if page:
            write_page(self, best, oracle)
            self._page_written = time.monotonic()
