"""Several runs beside one another: groups of runs that differ only in the seed, figures, and differences."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from uda.core.statistics import PairedDifference, mean_interval, paired_bootstrap
from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS
from uda.report.image_table import ImageTable
from uda.report.pictures import in_turns
from uda.report.run_record import RunRecord

Report = Mapping[str, Any]

#: Settings that a group's name tells of.
MOST_TOLD = 3


@dataclass
class ComparedRun:
    """A run with what its kind says about it."""

    record: RunRecord
    kind: str
    """Kind of run in words; empty if it is unknown."""
    identity: Mapping[str, Any]
    """Settings, by dotted key, that make the run what it is, without its name and its seed."""
    circumstances: Mapping[str, Any]
    """How it was computed: settings and versions that should not matter, by name."""
    target: str
    """The target in words. Figures of different targets cannot be compared."""
    measure: str
    """The main figure of its kind: `class_mean` or `overall`."""
    unit: str
    """"round" or "report"."""
    score: str
    """Name of the score that chooses a report without target labels."""
    scores: Sequence[float | None] = ()
    """This score of each report."""
    zero_shot_score: float | None = None
    """This score of the untouched network; None without one."""
    choice: Report | None = None
    """The report that it chooses."""
    has_target: bool = True
    """Whether its kind has a target. Without one a run has no figures to compare."""

    @property
    def folder(self) -> Path:
        return self.record.folder

    @property
    def seed(self) -> int | None:
        seed = self.record.settings.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def name(self) -> str:
        """Name of the run, without its seed."""
        return str(_without_seed(str(self.record.settings.get("name") or self.folder.name), self.seed))

    @property
    def zero_shot(self) -> Report | None:
        """Record of the untouched network with the class vectors of `model.classifier`; None without one."""
        return self.record.zero_shot if self.record.trusted else None

    @property
    def source(self) -> Report | None:
        """Record of the source model; None without one."""
        source = self.record.source
        return source if self.record.trusted and source and source.get("validators") else None

    @property
    def reports(self) -> Sequence[Report]:
        """Records of the reports; none if there is no target, or if the folder's records contradict one another."""
        return self.record.reports if self.record.trusted and self.has_target else []

    @property
    def final(self) -> Report | None:
        """The last report, or the source model of a run that has no other."""
        return self.reports[-1] if self.reports else self.source or self.zero_shot

    @property
    def table(self) -> ImageTable | None:
        """The images with the predictions of the last model."""
        table = self.record.last_table if self.record.trusted else None
        return None if table is None or table.get("prediction") is None else table

    @property
    def classes(self) -> tuple[str, ...]:
        if self.record.last_table is not None:
            return self.record.last_table.classes
        per_class = ((self.final or {}).get("accuracy") or {}).get("per_class")
        return tuple(per_class or (self.final or {}).get("predicted_per_class") or ())

    @property
    def key(self) -> tuple[str, str, str]:
        """What the runs of a group have in common."""
        settings = {name: _without_seed(value, self.seed) for name, value in self.identity.items()}
        unknown = "" if self.record.settings else str(self.folder)
        return self.name, unknown, json.dumps(settings, sort_keys=True, default=str)


def _without_seed(value: Any, seed: int | None) -> Any:
    """A text without the run's own seed: `runs/source/seed1` becomes `runs/source/seed{seed}`."""
    return re.sub(rf"seed(\W|_)?{seed}(?!\d)", r"seed\1{seed}", value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    count: int
    """Number of seeds."""
    interval: tuple[float, float] | None
    """Student's 95 % interval; None for one seed."""


def estimate(values: Mapping[Any, float]) -> Estimate | None:
    """Mean of values by seed, with its interval; None without values."""
    known = np.array(list(values.values()), dtype=float)
    if not len(known):
        return None
    return Estimate(float(known.mean()), len(known), mean_interval(known) if len(known) > 1 else None)


@dataclass
class Group:
    """Runs that differ only in the seed."""

    runs: list[ComparedRun]
    place: int = 0
    name: str = ""
    brief: str = ""
    """What tells it from the other groups, without what they share."""
    alone: bool = False
    """Whether there is no other group."""
    single: bool = False
    """Whether it stands for one run, which is compared with runs of other seeds."""
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def letter(self) -> str:
        """A, B, ..., Z, AA, AB, ... by place."""
        place, found = self.place, ""
        while place >= 0:
            place, found = place // len(ascii_uppercase) - 1, ascii_uppercase[place % len(ascii_uppercase)] + found
        return found

    @property
    def title(self) -> str:
        """Letter and name. The only group needs no letter."""
        return self.name if self.alone else f"{self.letter} {self.name}"

    @property
    def label(self) -> str:
        """A short title, for figures."""
        return f"{self.letter} {self.brief or self.name}"

    @property
    def first(self) -> ComparedRun:
        return self.runs[0]

    @property
    def target(self) -> str:
        return self.first.target

    @property
    def classes(self) -> tuple[str, ...]:
        return next((run.classes for run in self.runs if run.classes), ())

    @property
    def seeds(self) -> list[int | None]:
        """The different seeds of its runs."""
        return list(dict.fromkeys(run.seed for run in self.runs))

    @property
    def unfinished(self) -> int:
        return sum(not run.record.finished for run in self.runs)

    def by_seed(self, value: Callable[[ComparedRun], float | None]) -> dict[Any, float]:
        """A figure by seed. Runs of the same seed are no independent sample, so their mean counts once.

        A single run has no seed here, so that it has a difference to others.
        """
        found: dict[Any, list[float]] = {}
        for run in self.runs:
            known = value(run)
            if known is not None:
                found.setdefault(None if self.single else run.seed, []).append(known)
        return {seed: float(np.mean(values)) for seed, values in found.items()}

    def estimate(self, value: Callable[[ComparedRun], float | None]) -> Estimate | None:
        """Mean of a figure over the seeds."""
        return estimate(self.by_seed(value))

    def circumstances(self) -> dict[str, list[Any]]:
        """How its runs were computed: the different values by name."""
        names = dict.fromkeys(name for run in self.runs for name in run.circumstances)
        return {name: _different(run.circumstances.get(name) for run in self.runs) for name in names}


def _different(values) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def grouped(runs: Sequence[ComparedRun]) -> list[Group]:
    """The groups in the order of their first runs, with places and names. Runs of a group are in the order of seeds."""
    groups: dict[tuple[str, str, str], Group] = {}
    for run in runs:
        groups.setdefault(run.key, Group([])).runs.append(run)
    found = list(groups.values())
    for group in found:
        group.alone = len(found) == 1
        group.runs.sort(key=lambda run: (run.seed is None, run.seed or 0))
        seed = group.first.seed
        group.identity = {name: _without_seed(value, seed) for name, value in group.first.identity.items()}
    _name(found, [group.first.name for group in found])
    return found


def singly(group: Group) -> list[Group]:
    """The runs of a group, each as a group of its own."""
    found = [Group([run], identity=group.identity, single=True) for run in group.runs]
    for one in found:
        seed = one.first.seed
        one.name = one.first.folder.name if seed is None else f"seed {seed}"
    repeated = len({one.name for one in found}) < len(found)
    for place, one in enumerate(found):
        one.place, one.name = place, f"{one.name}, {one.first.folder}" if repeated else one.name
    return found


#: Settings that name a group best.
TELLING = ("method", "self_training.selector", "self_training.regularizer", "model.loss", "method_options")


def _name(groups: Sequence[Group], names: Sequence[str]) -> None:
    """Give groups of the same name what they differ in as well."""
    for place, (group, name) in enumerate(zip(groups, names, strict=True)):
        alike = [other for other, others in zip(groups, names, strict=True) if others == name]
        # Method and selector say most. Paths, such as that of a checkpoint, say least and are long.
        keys = sorted(differing(alike), key=lambda key: (key not in TELLING, key.endswith(("checkpoint", "output"))))
        values = {key: shown(group.identity[key]) for key in keys if key in group.identity}
        told = [f"{key} {value}" for key, value in values.items()]
        group.brief = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in values.items()) or name
        more = [f"and {len(told) - MOST_TOLD} more settings"] if len(told) > MOST_TOLD + 1 else []
        group.place, group.name = place, ", ".join([name, *told[: MOST_TOLD if more else None], *more])


def differing(groups: Sequence[Group]) -> list[str]:
    """Keys of the settings in which groups differ."""
    keys = dict.fromkeys(key for group in groups for key in group.identity)
    return [key for key in keys if len(_different(group.identity.get(key, _MISSING) for group in groups)) > 1]


_MISSING = object()


def shown(value: Any) -> str:
    """A setting for readers."""
    if isinstance(value, (list, tuple)):
        return " + ".join(map(shown, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def setting_rows(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """The settings and circumstances in which groups differ, each with its value in every group."""
    rows = [
        (key, [shown(group.identity[key]) if key in group.identity else "–" for group in groups])
        for key in differing(groups)
    ]
    around = [group.circumstances() for group in groups]
    for name in dict.fromkeys(name for found in around for name in found):
        values = [found.get(name, []) for found in around]
        if len(_different(value for found in values for value in found)) > 1:
            rows.append((name, [", ".join(map(shown, found)) or "–" for found in values]))
    return rows


# What can be compared


def obstacle(group: Group, reference: Group) -> str | None:
    """Why a group's figures cannot be compared with those of the reference; None if they can."""
    if not reference.first.has_target:
        return f"{reference.letter} has no target"
    if group.target != reference.target:
        return f"its target is {group.target}, not {reference.target}"
    ours, others = set(group.classes), set(reference.classes)
    if ours and others and ours != others:
        both = len(ours & others)
        return f"it has {len(ours)} classes, of which {both} are among the {len(others)} of {reference.letter}"
    return None


def paired(group: Group, reference: Group, value: Callable[[ComparedRun], float | None]) -> list[float]:
    """A group's figure minus the reference's, for each seed that both have; nothing if they cannot be compared."""
    if obstacle(group, reference):
        return []
    ours, others = group.by_seed(value), reference.by_seed(value)
    return [ours[seed] - others[seed] for seed in ours if seed in others]


def difference(group: Group, reference: Group, value: Callable[[ComparedRun], float | None]) -> PairedDifference | None:
    """Mean of a group's figure minus the reference's over shared seeds; None without such a seed."""
    return paired_bootstrap({group.target: paired(group, reference, value)})


# Images


@dataclass
class Disagreement:
    """Images by the predictions of the last models of several runs."""

    groups: Sequence[Group]
    """G groups whose predictions are compared."""
    runs: Sequence[ComparedRun]
    """The run of each group."""
    predictions: np.ndarray
    """(G, N) class numbers."""
    truth: np.ndarray | None
    """(N,) true classes; None if no label is known."""
    left_out: Sequence[tuple[Group, str]] = ()
    """Other groups, and why they are not compared."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.runs[0].table.classes

    @property
    def paths(self) -> Sequence[str]:
        return self.runs[0].table.paths

    @cached_property
    def known(self) -> np.ndarray:
        """(N,) whether an image has a label that is one of the classes."""
        return np.zeros(self.predictions.shape[1], bool) if self.truth is None else self.truth >= 0

    @cached_property
    def right(self) -> np.ndarray:
        """(G, N) whether a prediction is right; False without a label."""
        return np.zeros_like(self.predictions, bool) if self.truth is None else self.predictions == self.truth

    @cached_property
    def differ(self) -> np.ndarray:
        """(N,) whether not all predictions are the same."""
        return (self.predictions != self.predictions[0]).any(0)

    @cached_property
    def decided(self) -> np.ndarray:
        """(N,) whether one prediction is right and another is wrong."""
        return self.differ & self.right.any(0)

    def against_first(self, place: int) -> dict[str, int]:
        """Numbers of the images that a group and the first group predict differently."""
        differ = self.predictions[place] != self.predictions[0]
        first, other = self.right[0] & differ, self.right[place] & differ
        return {
            "differ": int(differ.sum()),
            "only_first_right": int(first.sum()),
            "only_this_right": int(other.sum()),
            "both_wrong": int((differ & self.known & ~first & ~other).sum()),
        }

    def pairs(self, most: int) -> list[dict[str, int]]:
        """The most frequent pairs of different predictions by the first group and another one."""
        found = []
        for place in range(1, len(self.groups)):
            codes = self.predictions[0] * len(self.classes) + self.predictions[place]
            codes, counts = np.unique(codes[self.predictions[place] != self.predictions[0]], return_counts=True)
            found += [(int(images), place, *divmod(int(code), len(self.classes)))
                      for code, images in zip(codes, counts, strict=True)]  # fmt: skip
        found.sort(key=lambda pair: (-pair[0], *pair[1:]))
        return [self._pair(*pair) for pair in found[:most]]

    def _pair(self, images: int, place: int, first: int, other: int) -> dict[str, int]:
        of_pair = (self.predictions[0] == first) & (self.predictions[place] == other)
        right = {"first_right": self.right[0], "other_right": self.right[place]}
        return {"group": place, "first": first, "other": other, "images": images,
                **{name: int((values & of_pair).sum()) for name, values in right.items()}}  # fmt: skip

    def pictures(self) -> dict[int, bytes]:
        """Thumbnails by row, from all runs of the same images."""
        found: dict[int, bytes] = {}
        for run in (run for group in self.groups for run in group.runs):
            if run.table is not None and run.table.paths == self.paths:
                found = {**run.record.pictures, **found}
        return found

    def notable(self, rows: Sequence[int], most: int) -> list[int]:
        """At most `most` of some rows: first images that one run has right and another wrong, classes taking turns."""
        available = np.zeros(len(self.differ), bool)
        available[list(rows)] = True
        by_class = self.predictions[0] if self.truth is None else np.where(self.known, self.truth, self.predictions[0])
        order = -self._sureness()
        kinds = (self.decided, self.differ & ~self.decided)
        return [row for kind in kinds for row in in_turns(order, np.where(kind & available, by_class, -1))][:most]

    def _sureness(self) -> np.ndarray:
        """(N,) mean probability of the predictions, so that firm contradictions come before doubtful ones."""
        probabilities = [run.table.get("probability") for run in self.runs]
        known = [values for values in probabilities if values is not None]
        return np.mean(known, axis=0) if known else np.zeros(len(self.differ))


def disagreement(groups: Sequence[Group]) -> Disagreement | None:
    """Compare the predictions of one run per group on the same images; None if fewer than two groups have any.

    The runs are of a seed that all groups have, if there is one.
    """
    with_images = [[run for run in group.runs if run.table is not None] for group in groups]
    found = [(group, runs) for group, runs in zip(groups, with_images, strict=True) if runs]
    left_out = [
        (group, "it has no images.parquet") for group, runs in zip(groups, with_images, strict=True) if not runs
    ]
    if not found:
        return None
    shared = set.intersection(*({run.seed for run in runs} for _, runs in found))
    chosen = [(group, next((run for run in runs if run.seed in shared), runs[0])) for group, runs in found]
    first = chosen[0][1].table
    kept: list[tuple[Group, ComparedRun, np.ndarray]] = []
    for group, run in chosen:
        if set(run.table.classes) != set(first.classes):
            left_out.append((group, "it has other classes"))
        elif run.table.paths != first.paths:
            left_out.append((group, "it has other images"))
        else:
            kept.append((group, run, _renumbered(run.table.get("prediction"), run.table.classes, first.classes)))
    if len(kept) < 2:
        return None
    truth = next((_truth(run, first.classes) for _, run, _ in kept if _truth(run, first.classes) is not None), None)
    left_out.sort(key=lambda entry: entry[0].place)
    return Disagreement(
        [group for group, _, _ in kept], [run for _, run, _ in kept], np.stack([labels for _, _, labels in kept]),
        truth, left_out,
    )  # fmt: skip


def _truth(run: ComparedRun, classes: Sequence[str]) -> np.ndarray | None:
    truth = run.table.get("label")
    return None if truth is None or not (truth != NO_LABEL).any() else _renumbered(truth, run.table.classes, classes)


def _renumbered(numbers: np.ndarray, classes: Sequence[str], order: Sequence[str]) -> np.ndarray:
    """Class numbers of `classes` as those of the same classes in another order. Negative numbers stay."""
    place = {name: number for number, name in enumerate(order)}
    table = np.array([*(place[name] for name in classes), UNKNOWN_CLASS, NO_LABEL])  # the last two for -2 and -1
    return table[numbers]
