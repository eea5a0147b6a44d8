"""What a search leaves: the best config, a summary for programs, and the page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from uda.core.errors import UserError
from uda.core.files import write_json, write_text
from uda.core.statistics import spearman
from uda.searches.runs import KindOfRun, records_in
from uda.searches.space import value_text
from uda.searches.state import SearchState
from uda.searches.trials import Trial
from uda.training.records import plain

BEST, SUMMARY, PAGE = "best.yaml", "search.json", "search.html"
#: Fewest finished trials whose order says anything.
LEAST_TRIALS = 4

Oracle = Mapping[int, float | None]
"""The oracle accuracy at the last report of each trial, by its number; None without target labels."""


@dataclass(frozen=True)
class Verdict:
    """What a validator would have chosen among the finished trials. All accuracies are oracle figures."""

    validator: str
    trial: int
    """The trial with its highest score."""
    accuracy: float
    """Oracle accuracy of that trial."""
    share: float | None
    """Its gain over trial 0 as a share of the gain of the oracle's choice; None if no trial is better than trial 0."""
    rank: float | None
    """Spearman's correlation of score and oracle accuracy over the trials; None for too few or equal ones."""


def oracle_of(folder: Path, kind: KindOfRun) -> float | None:
    """The oracle accuracy at the last report of a run folder; None if it is not known, or the folder was deleted."""
    try:
        records = records_in(folder)
    except UserError:  # a damaged record of a trial that has ended; its scores are in the trial's own record
        return None
    return records[-1].get(kind.measure) if records else None


def verdicts(trials: Sequence[Trial], oracle: Oracle) -> list[Verdict]:
    """What each validator would have chosen, with the best choice first. Empty without target labels."""
    finished = [trial for trial in trials if trial.state == "finished" and oracle.get(trial.number) is not None]
    if not finished:
        return []
    accuracies = np.array([oracle[trial.number] for trial in finished])
    first, highest = oracle.get(0), accuracies.max()
    found = []
    for name in finished[0].validators:
        scores = [trial.validators.get(name) for trial in finished]
        if None in scores:
            continue
        place = int(np.argmax(scores))
        chosen = float(accuracies[place])
        share = (chosen - first) / (highest - first) if first is not None and highest > first else None
        rank = spearman(np.array(scores), accuracies) if len(finished) >= LEAST_TRIALS else None
        found.append(Verdict(name, finished[place].number, chosen, share, plain(rank)))
    return sorted(found, key=lambda verdict: -verdict.accuracy)


def write_summary(search: SearchState, best: Trial | None, oracle: Oracle) -> None:
    """Write `search.json`. Oracle figures have `oracle` in their names, and nothing is chosen by them."""
    content = {
        "config": search.config.name,
        "command": search.kind.command,
        "validator": search.validator,
        "seed": search.config.seed,
        "pruning": search.pruning,
        "space": search.space.entries(),
        "finished": search.finished,
        "best": None if best is None else {"trial": best.number, "score": best.score, "values": best.values},
        "trials": [
            {**asdict(trial), "score": trial.score, "oracle": oracle.get(trial.number)} for trial in search.trials
        ],
        "oracle_choices": [asdict(verdict) for verdict in verdicts(search.trials, oracle)],
    }
    write_json(search.folder / SUMMARY, plain(content))


def write_best(search: SearchState, best: Trial) -> None:
    """Write `best.yaml`, a config that the command of the runs takes."""
    told = f"by {search.validator} {best.score:.4f}, without target labels"
    head = f"# The best of {len(search.trials)} trials of `uda search`: trial {best.number}, {told}.\n"
    text = yaml.safe_dump(search.best_content(best), sort_keys=False, allow_unicode=True)
    write_text(search.folder / BEST, head + text)


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key without its section, if no other key ends alike: `portion.start`, but `source.optim.lr`."""
    ends = [key.partition(".")[2] or key for key in keys]
    return {key: key if ends.count(end) > 1 else end for key, end in zip(keys, ends, strict=True)}


def values_text(values: Mapping[str, Any]) -> list[str]:
    """Each value of a trial in words, with a short name: `optim.lr 0.02`."""
    names = short_keys(list(values))
    return [f"{names[key]} {value_text(value)}" for key, value in values.items()]
