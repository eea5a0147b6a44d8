"""The lines of a search in the terminal, at most 80 columns wide."""

from collections.abc import Sequence

from uda.core.plain_text import WIDTH
from uda.report import terminal
from uda.report.terminal import Column, indented, percent
from uda.searches.results import BEST, PAGE, Oracle, values_text
from uda.searches.state import SearchState
from uda.searches.trials import Trial, best_of
from uda.training.pace import rough_duration

COLUMNS = (
    Column("trial", 6),
    Column("score", 10),
    Column("best", 10),
    Column("of trial", 10),
    Column("state", 10),
    Column("time", 9),
)


def plan(search: SearchState) -> list[str]:
    """What the search will do."""
    keys = max(len(setting.key) for setting in search.space.settings)
    ended = sum(trial.ended for trial in search.trials)
    pruning = "trials with low scores end early" if search.pruning else "no trial ends early"
    lines = [
        f"search   {search.config.name}, seed {search.config.seed}: {search.wanted} trials -> {search.folder}",
        *_wrapped("judge    ", f"{search.validator}, at the last report, without target labels; {pruning}".split(" ")),
    ]
    for place, setting in enumerate(search.space.settings):
        lines += _wrapped(f"{'space' if not place else '':<9}{setting.key:<{keys}}  ", setting.describe().split(" "))
    lines += [f"given    {key}: not searched, because it is given" for key in search.left_out]
    lines += [f"resumes  after {counted(search.trials)}"] if ended else []
    return lines


def whole_cost(search: SearchState, seconds: float) -> list[str]:
    """How long all trials that are left take. `seconds`: a run of the config as it is."""
    left = search.wanted - sum(trial.ended for trial in search.trials)
    early = ", less if some end early" if search.pruning else ""
    told = f"about {rough_duration(left * seconds)}, if each is as long as this run{early}"
    return _wrapped("all      ", f"{left} trial{'s' * (left != 1)}: {told}".split(" "))


def counted(trials: Sequence[Trial]) -> str:
    """`20 trials, 14 finished, 5 pruned, 1 failed`."""
    states = [trial.state for trial in trials if trial.ended]
    told = [f"{states.count(state)} {state}" for state in ("finished", "pruned", "failed") if state in states]
    return ", ".join([f"{len(states)} trial{'' if len(states) == 1 else 's'}", *told])


def trial_lines(search: SearchState, trial: Trial) -> list[str]:
    """A trial's row of the table, and its values. The head comes before every tenth trial."""
    best = best_of(search.trials[: trial.number + 1])
    cells = {
        "trial": str(trial.number),
        "score": terminal.fraction(trial.score, 4),
        "best": terminal.fraction(best.score if best else None, 4),
        "of trial": str(best.number) if best else "-",
        "state": trial.state,
        "time": rough_duration(trial.seconds),
    }
    lines = terminal.header(COLUMNS) if trial.number % terminal.HEADER_EVERY == 0 else []
    lines.append(terminal.row(COLUMNS, cells))
    if trial.error:
        lines += indented([trial.error])
    head = "        as it is: " if trial.number == 0 else "        "
    return lines + _wrapped(head, _with_commas(values_text(trial.values)))


def result(search: SearchState, best: Trial, oracle: Oracle) -> list[str]:
    """The result of a search."""
    first = search.trials[0]
    against = "" if first.score is None or first is best else f"; trial 0, the config as it is: {first.score:.4f}"
    lines = [
        f"searched {counted(search.trials)}",
        f"best     trial {best.number}: {search.validator} {best.score:.4f}{against}",
        *_wrapped(
            "         ", [*(f"{value}," for value in values_text(best.values)[:-1]), values_text(best.values)[-1]]
        ),
    ]
    known = {number: share for number, share in oracle.items() if share is not None}
    if best.number in known:
        told = [f"best trial {percent(known[best.number])}"]
        told += [f"trial 0 {percent(known[0])}"] if 0 in known and first is not best else []
        told += [f"highest of all {percent(max(known.values()))}"]
        lines += _wrapped("oracle   ", [f"{search.kind.measure_name}, %:", *_with_commas(told)])
    return [
        *lines,
        f"config   {search.folder / BEST} (for uda {search.kind.command} --cfg)",
        f"page     {search.folder / PAGE}",
    ]


def _with_commas(texts: Sequence[str]) -> list[str]:
    return [*(f"{text}," for text in texts[:-1]), *texts[-1:]]


def _wrapped(head: str, words: Sequence[str]) -> list[str]:
    """Words after a head, in lines whose later ones are indented as far. A long word has a line of its own."""
    lines, line = [], head
    for word in words:
        if len(line) + len(word) > WIDTH and line.strip() and line != head:
            lines.append(line.rstrip())
            line = " " * len(head)
        line += f"{word} "
    return [*lines, line.rstrip()]
