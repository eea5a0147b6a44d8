"""The page of a search: `search.html`."""

import math
import time
from collections.abc import Mapping
from typing import Any

from uda.core.files import write_text
from uda.report import figures
from uda.report.html import clean_name, template
from uda.report.page import Card
from uda.report.terminal import fraction, percent
from uda.searches.figures import against_figure, history_figure, setting_figure
from uda.searches.lines import counted
from uda.searches.results import PAGE, Oracle, short_keys, values_text, verdicts
from uda.searches.runs import HELD_OUT
from uda.searches.sampling import RANDOM_TRIALS
from uda.searches.space import Searched, value_text
from uda.searches.state import SearchState
from uda.searches.trials import Trial, trial_folder


def write_page(search: SearchState, best: Trial | None, oracle: Oracle) -> None:
    """Write `search.html`: one HTML file that needs no others.

    Args:
        search: the search, finished or not.
        best: its best trial; None if no trial is finished.
        oracle: the oracle accuracy of each trial.
    """
    pages = {trial.number: trial_folder(search.folder, trial.number) / "report.html" for trial in search.trials}
    links = {number: path.relative_to(search.folder).as_posix() for number, path in pages.items() if path.is_file()}
    write_text(search.folder / PAGE, _render(search, best, oracle, links))


def _render(search: SearchState, best: Trial | None, oracle: Oracle, links: Mapping[int, str]) -> str:
    trials, validator = search.trials, search.validator
    drawn = [trial for trial in trials if trial.state in ("finished", "pruned") and trial.score is not None]
    labelled = any(share is not None for share in oracle.values())
    first = trials[0] if trials else None
    keys = short_keys([setting.key for setting in search.space.settings])
    found = verdicts(trials, oracle)
    highest = max(
        (trial for trial in trials if trial.state == "finished" and oracle.get(trial.number) is not None),
        key=lambda trial: oracle[trial.number],
        default=None,
    )
    shown = [trial for trial in drawn if oracle.get(trial.number) is not None]
    return template("search.html").render(
        name=search.config.name,
        seed=search.config.seed,
        command=search.kind.command,
        subtitle=_subtitle(search),
        validator=validator,
        validator_words="the accuracy on held-out images of the seen domains"
        if validator == HELD_OUT
        else f"the validator '{validator}', which needs no target labels,",
        measure=search.kind.measure_name,
        labelled=labelled,
        notices=_notices(search, best),
        lead=_lead(search, best, first),
        figures_of_best=_cards(search, best, first, oracle),
        best=best,
        settings=[_setting(setting, keys, best, first) for setting in search.space.settings],
        history=_svg(history_figure(drawn, validator), "history", _history_words(drawn, best)) if drawn else None,
        panels=[
            (
                setting.key,
                _svg(
                    setting_figure(setting, drawn, validator),
                    f"setting-{number}",
                    f"{validator} of {len(drawn)} trials by {setting.key}.",
                ),
            )
            for number, setting in enumerate(search.space.settings)
            if len(drawn) > 1
        ],
        verdicts=found,
        bound=(highest.number, oracle[highest.number]) if highest else None,
        against=_svg(
            against_figure(shown, [oracle[trial.number] for trial in shown], validator),
            "against",
            f"Accuracy of {len(shown)} trials by their score.",
        )
        if len(shown) > 1
        else None,
        pruned=any(trial.state == "pruned" for trial in trials),
        rows=[
            {
                "trial": trial,
                "state": _state(trial),
                "cells": [_cell(trial.values[setting.key]) for setting in search.space.settings],
                "oracle": oracle.get(trial.number),
                "link": links.get(trial.number),
            }
            for trial in trials
        ],
        facts=_facts(search),
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
    )


def _svg(figure: Any, name: str, description: str) -> str:
    return figures.to_svg(figure, name, clean_name(description))


def _subtitle(search: SearchState) -> str:
    domains = search.config.domains
    told = f"{domains['source']} to {domains['target']}" if "source" in domains else f"unseen {domains['target']}"
    return " · ".join([told, f"judged by {search.validator}", counted(search.trials)])


def _lead(search: SearchState, best: Trial | None, first: Trial | None) -> tuple[str, str, str]:
    if best is None:
        return "No trial is finished yet.", "", ""
    if best.number == 0:
        return f"Of {len(search.trials)} trials the config as it is has the best score:", f"{best.score:.4f}.", ""
    told = f"Of {len(search.trials)} trials, trial {best.number} has the best score:"
    before = "" if first.score is None else f"The config as it is has {first.score:.4f}."
    return told, f"{best.score:.4f}.", before


def _notices(search: SearchState, best: Trial | None) -> list[str]:
    """What a reader must know."""
    found = []
    if not search.finished:
        ended = sum(trial.ended for trial in search.trials)
        found.append(f"The search is not finished: {ended} of {search.wanted} trials have ended.")
    failed = [trial for trial in search.trials if trial.state == "failed"]
    if failed:
        numbers = ", ".join(str(trial.number) for trial in failed)
        found.append(f"Failed: trial{'s' if len(failed) > 1 else ''} {numbers}. The last error: {failed[-1].error}")
    if best is not None:
        ends = [setting.key for setting in search.space.settings if _at_end(setting, best)]
        if ends and best.number:
            found.append(
                f"The best value is at the end of its range for: {', '.join(ends)}. A wider range may be better."
            )
    if search.finished and search.wanted <= RANDOM_TRIALS:
        found.append(f"The first {RANDOM_TRIALS} trials are random, so these trials are a random search.")
    return found


def _at_end(setting: Searched, trial: Trial) -> bool:
    """Whether a trial's value lies within a twentieth of an end of the range, as the range is drawn."""
    value = trial.values[setting.key]
    if setting.range is None or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = setting.range.low, setting.range.high
    if setting.range.log:
        if value <= 0:
            return False
        low, high, value = math.log(low), math.log(high), math.log(value)
    return min(value - low, high - value) < 0.05 * (high - low)


def _cards(search: SearchState, best: Trial | None, first: Trial | None, oracle: Oracle) -> list[Card]:
    if best is None:
        return []
    name, number = search.kind.measure_name, best.number
    found = [Card(search.validator, fraction(best.score, 4), f"score of trial {number}", main=True)]
    if first is not None and first.score is not None:
        found.append(Card(search.validator, fraction(first.score, 4), "score of trial 0, the config as it is"))
    if oracle.get(number) is not None:
        found.append(Card("best trial", f"{percent(oracle[number])} %", name, oracle=True))
    if oracle.get(0) is not None:
        found.append(Card("trial 0", f"{percent(oracle[0])} %", f"{name}, the config as it is", oracle=True))
    return found


def _setting(setting: Searched, keys: Mapping[str, str], best: Trial | None, first: Trial | None) -> dict[str, Any]:
    return {
        "key": setting.key,
        "short": keys[setting.key],
        "best": value_text(best.values[setting.key]) if best else "",
        "at_end": bool(best and best.number and _at_end(setting, best)),
        "before": value_text(first.values[setting.key]) if first else "",
        "searched": setting.describe(),
    }


def _cell(value: Any) -> tuple[str, float | None]:
    """A value in words, and the number that it is sorted by."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return value_text(value), number


def _state(trial: Trial) -> str:
    return {"pruned": "ended early", "running": "not finished"}.get(trial.state, trial.state)


def _history_words(trials: list[Trial], best: Trial | None) -> str:
    told = f"; the best is trial {best.number} with {best.score:.4f}" if best else ""
    return f"Score of {len(trials)} trials in order{told}."


def _facts(search: SearchState) -> list[tuple[str, str]]:
    return [
        ("Config", str(search.config_name or search.config.name)),
        ("Changes", ", ".join(values_text(search.changes())) or "none"),
        ("Method", search.config.method),
        ("Judged by", search.validator),
        ("Space", search.space.name),
        ("Early end", "trials below the median of others" if search.pruning else "none"),
        ("Folder", str(search.folder)),
    ]
