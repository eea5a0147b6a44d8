"""The figures of a search's page."""

from collections.abc import Sequence
from typing import Any

from uda.report.figures import COLOURS, FAINT, finish, legend_name, new_axes, quick_axes, styled
from uda.searches.space import Searched, value_text
from uda.searches.trials import Trial, best_of

#: Longest name of a choice on an axis, in letters.
LONGEST = 14


@styled
def history_figure(trials: Sequence[Trial], validator: str):
    """The score of each trial, and the best one so far."""
    axes = quick_axes(6, 3.2)
    _points(axes, trials, [trial.number for trial in trials])
    steps, heights = [], []
    for place, trial in enumerate(trials):
        if (best := best_of(trials[: place + 1])) is not None:
            steps.append(trial.number)
            heights.append(best.score)
    axes.plot(steps, heights, color=COLOURS[1], linewidth=1.6, drawstyle="steps-post", label="best so far")
    finish(axes, legend_name(validator), legend=True, xlabel="trial")
    return axes.figure


@styled
def setting_figure(setting: Searched, trials: Sequence[Trial], validator: str):
    """The score of the trials by the value of a setting. Values that are no numbers have places of their own."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    values = [trial.values[setting.key] for trial in trials]
    if setting.range is not None:
        axes = quick_axes(4.6, 2.9)
        shown = [(trial, value) for trial, value in zip(trials, values, strict=True) if _is_number(value)]
        _points(axes, [trial for trial, _ in shown], [value for _, value in shown])
        finish(axes, legend_name(validator), legend=False, xlabel="")
        if setting.range.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        elif not setting.whole:
            axes.xaxis.set_major_locator(MaxNLocator(6))
    else:
        axes = new_axes(4.6, 2.9)  # which makes room for names
        names = list(dict.fromkeys(value_text(value) for value in (*setting.choices, *values)))
        _points(axes, trials, [names.index(value_text(value)) for value in values])
        finish(axes, legend_name(validator), legend=False, xlabel="")
        short = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
        axes.set_xticks(range(len(names)), short, **({"rotation": 25, "ha": "right"} if len(names) > 4 else {}))
        axes.set_xlim(-0.5, len(names) - 0.5)
    return axes.figure


@styled
def against_figure(trials: Sequence[Trial], accuracies: Sequence[float], validator: str):
    """The oracle accuracy of the trials by their score."""
    axes = quick_axes(6, 3.2)
    known = [(trial, value) for trial, value in zip(trials, accuracies, strict=True) if trial.score is not None]
    for state, look in LOOKS.items():
        points = [(trial.score, 100 * value) for trial, value in known if trial.state == state]
        if points:
            axes.scatter(*zip(*points, strict=True), 34, label=NAMES[state], **look)
    axes.set_xlabel(legend_name(validator))
    axes.set_ylabel("% (oracle)")
    axes.grid(color=FAINT, linewidth=0.8)
    return axes.figure


LOOKS: dict[str, dict[str, Any]] = {
    "finished": {"color": COLOURS[0], "marker": "o"},
    "pruned": {"facecolors": "none", "edgecolors": COLOURS[0], "marker": "o", "linewidths": 1.1},
}
NAMES = {"finished": "finished", "pruned": "ended early"}


def _points(axes, trials: Sequence[Trial], places: Sequence[float]) -> None:
    for state, look in LOOKS.items():
        points = [
            (place, trial.score)
            for trial, place in zip(trials, places, strict=True)
            if trial.state == state and trial.score is not None
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), 34, label=NAMES[state], **look)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
