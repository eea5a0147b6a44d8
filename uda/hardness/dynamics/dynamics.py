"""How scores change during training, by groups of images that people find easier or harder (Discoveries 1 to 5).

Source: Chen et al., ICML 2020, section 4. `plateau_epoch` defines when a curve plateaus.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from uda.core.errors import UserError, naming, renamed
from uda.data.cards import load_card
from uda.hardness.dynamics import dynamics_figures as draw
from uda.hardness.dynamics.config import SupervisedConfig
from uda.hardness.dynamics.records import read_epoch_scores, read_epochs
from uda.hardness.people.bins import bin_name, bin_numbers
from uda.hardness.people.human import HumanFrequencies, read_human
from uda.hardness.people.join import FEWEST, check_classes, join
from uda.hardness.scoring.score_table import read_scores
from uda.hardness.scoring.scores import EASIER
from uda.report.findings import Findings

#: Quantities that are followed by group: title, and label with unit.
FOLLOWED = {
    "avh": ("AVH", "AVH, in 1 / K"),
    "loss": ("loss", "loss, nats"),
    "accuracy": ("accuracy", "accuracy, %"),
    "confidence": ("confidence", "confidence, p of the label"),
    "norm": ("norm", "norm of x"),
}
#: The settings of a run's config for the options of `correlate`.
HUMAN_SETTINGS = {
    "human": "human.file",
    "kind": "human.format",
    "id_column": "human.id_column",
    "frequency_column": "human.frequency_column",
    "allow_missing": "human.allow_missing=true",
    "bins": "human.bins",
}
#: Quantities with a different unit for each network.
OWN_SCALE = ("norm",)
#: Scores whose correlation with people is followed.
CORRELATED = ("avh", "confidence", "norm")

#: A curve is near its end within one of these shares of its change. The choice is arbitrary, so there are three.
#: Figures show the middle one.
PLATEAU_SHARES = (0.02, 0.05, 0.1)
DRAWS = 1000


@dataclass(frozen=True)
class History:
    """The scores of a finished run after each epoch. Epoch 0 is the untrained network."""

    name: str
    """Name in legends and tables."""
    ids: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    """Arrays (E, N) by name: every score, and `accuracy` (0 or 1)."""
    num_classes: int
    records: Sequence[Mapping[str, Any]]
    """`epochs/NN.json`, (E)."""

    @property
    def epochs(self) -> np.ndarray:
        """0..E-1."""
        return np.arange(len(self.records))


def load_history(folder: Path, name: str) -> History:
    """Read the history of a finished run. Raises UserError if the run is not finished."""
    if not all((folder / name).is_file() for name in ("results.json", "scores.csv")):
        raise UserError(f"{folder}: no finished run of `uda hardness dynamics`")
    records = read_epochs(folder)
    values = {score: read_epoch_scores(folder, score) for score in records[0]["scores"]}
    values["accuracy"] = read_epoch_scores(folder, "right").astype(np.float64)
    return History(name, read_scores(folder / "scores.csv").ids, values, len(records[0]["per_class"]), records)


@dataclass(frozen=True)
class Groups:
    """Groups of images by human selection frequency."""

    names: tuple[str, ...]
    """Names of the groups with their edges, from hard to easy: `(0.8, 1]`."""
    members: np.ndarray
    """(N,) int64, group number of each image; -1 for images that people have not seen."""
    frequency: np.ndarray | None
    """(N,) human selection frequency, 0..1; nan for images that people have not seen. None: all images are one group
    and there are no frequencies."""

    @classmethod
    def by_frequency(cls, frequency: np.ndarray, edges: Sequence[float]) -> "Groups":
        """Groups [e0, e1], (e1, e2], ... An image with nan is in no group.

        Raises UserError if a frequency is outside of all groups.
        """
        names = tuple(bin_name(number, edges) for number in range(len(edges) - 1))
        unseen = np.isnan(frequency)
        members = np.where(unseen, -1, bin_numbers(frequency, edges))
        if outside := int((members[~unseen] < 0).sum()):
            raise UserError(
                f"human.bins: {outside} frequencies are outside [{edges[0]:g}, {edges[-1]:g}]; use bins from 0 to 1"
            )
        return cls(names, members, frequency)

    @classmethod
    def one(cls, count: int) -> "Groups":
        """One group of all images."""
        return cls(("all",), np.zeros(count, np.int64), None)

    def sizes(self) -> np.ndarray:
        """Number of images in each group."""
        return np.bincount(self.members[self.members >= 0], minlength=len(self.names))


def scaled(history: History, name: str) -> np.ndarray:
    """The values of a quantity in the unit of its figure, (E, N): AVH times K, accuracy in per cent."""
    factor = {"avh": history.num_classes, "accuracy": 100.0}.get(name, 1.0)
    return factor * history.values[name]


def group_rows(history: History, groups: Groups) -> list[dict[str, Any]]:
    """Means of every followed quantity with 95 % intervals, by epoch and group and for all images.

    Intervals are Wilson's for accuracy and Student's for the others. They are None if a group has one image.
    """
    rows = []
    parts = [*enumerate(groups.names), (None, "all")] if len(groups.names) > 1 else [(None, "all")]
    for name in FOLLOWED:
        values = scaled(history, name)
        for number, title in parts:
            own = values if number is None else values[:, groups.members == number]
            count = own.shape[1]
            if not count:
                continue
            intervals = [_interval(name, row) for row in own]
            rows += [
                {"run": history.name, "quantity": name, "group": title, "epoch": epoch, "mean": float(mean),
                 "low": low, "high": high, "images": count}
                for epoch, mean, (low, high) in zip(history.epochs.tolist(), own.mean(1), intervals, strict=True)
            ]  # fmt: skip
    return rows


def _interval(name: str, values: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean of a quantity (N,)."""
    from uda.core.statistics import mean_interval, share_interval

    if name == "accuracy":
        low, high = share_interval(int((values > 0).sum()), len(values))
        return 100 * low, 100 * high
    return mean_interval(values) if len(values) > 1 else (None, None)


def plateau_epoch(curve: np.ndarray, share: float) -> np.ndarray:
    """The epoch after which a curve stays near its last value: (..., E) -> (...).

    Near means: the distance to the last value is at most `share` of the distance between the first and the last value.
    Between epochs the curve is linear. Values beyond the last value also count as distant. A learning rate that falls
    to 0 makes every curve flat at the end, so only the order of the curves of one run can be compared.
    """
    curve = np.asarray(curve, dtype=np.float64)
    away = curve - curve[..., -1:]
    near = share * np.abs(away[..., :1])
    far = np.abs(away) > near
    last = np.where(far.any(-1), curve.shape[-1] - 1 - np.argmax(far[..., ::-1], axis=-1), 0)[..., None]
    before, after = (np.take_along_axis(away, epoch, -1)[..., 0] for epoch in (last, last + 1))
    sign = np.sign(before)
    way = np.where(sign == 0, 1.0, sign * (before - after))
    return np.where(far.any(-1), last[..., 0] + (np.abs(before) - near[..., 0]) / way, 0.0)


def plateau_rows(history: History, draws: int = DRAWS) -> list[dict[str, Any]]:
    """Plateau epochs of mean AVH, loss and accuracy, and their distance from AVH's, with bootstrap intervals.

    One row per share of PLATEAU_SHARES and quantity. Each bootstrap draw has the same images for all three quantities.
    The intervals describe the choice of test images. They do not describe the randomness of training, so another run
    can be outside of them. A curve that fluctuates by more than the share has a late plateau epoch. With a larger share
    it is earlier, so the rows show several shares.
    """
    names = ("avh", "loss", "accuracy")
    values = {name: scaled(history, name) for name in names}
    count = values["avh"].shape[1]
    generator = np.random.default_rng(0)
    drawn = {name: np.empty((draws, len(history.records))) for name in names}
    for row in range(draws):
        weights = np.bincount(generator.integers(count, size=count), minlength=count) / count
        for name in names:
            drawn[name][row] = values[name] @ weights
    rows = []
    for share in PLATEAU_SHARES:
        found = {name: float(plateau_epoch(values[name].mean(1), share)) for name in names}
        resampled = {name: plateau_epoch(drawn[name], share) for name in names}
        for name in names:
            low, high = np.quantile(resampled[name], (0.025, 0.975))
            later = np.quantile(resampled[name] - resampled["avh"], (0.025, 0.975))
            rows.append({
                "run": history.name, "near, %": 100 * share, "quantity": name, "epochs": len(history.records) - 1,
                "plateau epoch": found[name], "low": float(low), "high": float(high),
                "after AVH by": found[name] - found["avh"],
                "after AVH, low": float(later[0]), "after AVH, high": float(later[1]),
            })  # fmt: skip
    return rows


def pair_rows(histories: Sequence[History]) -> list[dict[str, Any]]:
    """Differences of every two runs after the last epoch, paired by image.

    `better` is the run with the higher accuracy. The differences are its accuracy (in points) and its AVH (in 1 / K)
    minus those of `run`, each with its standard error.
    """
    ordered = sorted(histories, key=lambda history: -history.values["accuracy"][-1].mean())
    rows = []
    for better, other in combinations(ordered, 2):
        row: dict[str, Any] = {"better": better.name, "run": other.name}
        for name in ("accuracy", "avh"):
            row[name], row[f"{name}_error"] = _paired(scaled(better, name)[-1] - scaled(other, name)[-1])
        rows.append(row)
    return rows


def norm_rows(history: History) -> list[dict[str, Any]]:
    """The change of the mean norm from the first to the middle epoch and from there to the last, paired by image."""
    norms, last = history.values["norm"], len(history.records) - 1
    middle = (last + 1) // 2
    rows = []
    for begin, end in ((min(1, last), middle), (middle, last)):
        change, error = _paired(norms[end] - norms[begin])
        rows.append({
            "run": history.name, "first": begin, "last": end, "from": float(norms[begin].mean()),
            "to": float(norms[end].mean()), "change": change, "error": error,
        })  # fmt: skip
    return rows


def _paired(differences: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))


def correlation_rows(history: History, frequency: np.ndarray) -> list[dict[str, Any]]:
    """Spearman's rho of scores with human frequency after every epoch. It is positive if it is as the paper expects.

    Images that people have not seen (frequency nan) are left out.
    """
    from uda.core.statistics import constant, fisher_interval, fisher_p, spearman

    seen = ~np.isnan(frequency)
    rows = []
    for name in CORRELATED:
        for epoch, values in enumerate(history.values[name][:, seen]):
            if constant(values):
                continue
            rho = EASIER[name] * spearman(values, frequency[seen])
            low, high = fisher_interval(rho, int(seen.sum()))
            p = fisher_p(rho, int(seen.sum()))
            rows.append(
                {"run": history.name, "score": name, "epoch": epoch, "rho": rho, "low": low, "high": high, "p": p}
            )
    return rows


def final_rows(histories: Sequence[History]) -> list[dict[str, Any]]:
    """Means after the last epoch, one row per run, the most accurate run first."""
    rows = [
        {
            "run": history.name,
            **{FOLLOWED[name][1]: float(scaled(history, name)[-1].mean()) for name in ("accuracy", *FOLLOWED)},
        }
        for history in histories
    ]
    return sorted(rows, key=lambda row: -row[FOLLOWED["accuracy"][1]])


@dataclass(frozen=True)
class People:
    """Human frequencies of N test images."""

    human: HumanFrequencies
    """Frequencies of the images that people have seen."""
    frequency: np.ndarray
    """(N,) human selection frequency; nan for images that people have not seen."""


@naming(HUMAN_SETTINGS)
def human_of(
    config: SupervisedConfig, ids: Sequence[str], labels: Sequence[str], log: Callable[[str], None] = print
) -> People | None:
    """The human frequencies of a config's test images, in the order of `ids`. None if the config has no human file.

    `labels` are the images' class names. Raises UserError, as `read_human`, `join` and `check_classes` do.
    """
    wanted = config.human
    if wanted.file is None:
        return None
    human = read_human(
        find_human(config), wanted.format, wanted.id_column, wanted.frequency_column,
        log=lambda line: log(renamed(line, HUMAN_SETTINGS)),
    )  # fmt: skip
    pairs = join(ids, human.ids, ("the test images", "the human file"), wanted.allow_missing)
    seen = human.take(pairs.second)
    check_classes("the test images", [labels[i] for i in pairs.first], seen)
    frequency = np.full(len(ids), np.nan)
    frequency[pairs.first] = seen.frequencies
    if len(seen) < len(ids):
        log(f"people have seen {len(seen):,} of the {len(ids):,} test images; groups and correlations use these")
    return People(seen, frequency)


def groups_of(
    config: SupervisedConfig, ids: Sequence[str], labels: Sequence[str], log: Callable[[str], None] = print
) -> Groups:
    """The groups of a config's test images; one group if the config has no human file. Raises UserError."""
    people = human_of(config, ids, labels, log)
    if people is None:
        return Groups.one(len(ids))
    groups = Groups.by_frequency(people.frequency, config.human.bins)
    few = [f"{name} has {size}" for name, size in zip(groups.names, groups.sizes(), strict=True) if size < FEWEST]
    if few:
        raise UserError(f"human.bins: a bin needs at least {FEWEST} test images, but {', '.join(few)}; make it wider")
    return groups


def find_human(config: SupervisedConfig) -> Path:
    """The human file of a config: a path, or a file in the data set's folder."""
    path = Path(config.human.file)
    if path.is_file():
        return path
    if config.data.dataset is None:
        below = Path(config.data.root or "") / path
        return below if below.is_file() else path
    found = load_card(config.data.dataset).find_root(config.data.root) / path
    if not found.is_file() and config.data.dataset == "cifar10":
        raise UserError(
            f"human.file: neither {path} nor {found} exists; CIFAR-10H is at "
            "https://github.com/jcpeterson/cifar-10h: human.file=cifar10h-raw.zip (`all`: set=[human.file=...])"
        )
    return found


def require_comparable(configs: Sequence[SupervisedConfig]) -> None:
    """Raise UserError if two runs have the same name or folder, or if runs have different test images."""
    names = [run_name(config, configs) for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two runs have the name '{name}'; give one of them another name or another seed")
    folders = [config.folder for config in configs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"two runs would share {folder}; put {{name}} and {{seed}} into output=...")
    places = [f"{config.data.dataset}:{config.data.test}".removeprefix("None:") for config in configs]
    for name, place in zip(names, places, strict=True):
        if place != places[0]:
            raise UserError(
                f"compared runs need the same test images, but '{name}' uses {place} and '{names[0]}' uses {places[0]}"
            )


def report_dynamics(configs: Sequence[SupervisedConfig], folder: Path) -> Path:
    """Write the page of the configs' finished runs, with its figures and data. Returns the page's path."""
    histories = [load_history(config.folder, run_name(config, configs)) for config in configs]
    groups = groups_of(configs[0], histories[0].ids, read_scores(configs[0].folder / "scores.csv").labels)
    findings = Findings(
        folder, "Hardness in training", f"Scores of {len(histories[0].ids):,} test images after every epoch."
    )
    add_dynamics(histories, groups, findings)
    return findings.write(facts_of(configs))


def facts_of(configs: Sequence[SupervisedConfig]) -> list[tuple[str, str]]:
    """Facts of the runs for the page."""
    first = configs[0]
    place = f"{first.data.dataset}:{first.data.test}".removeprefix("None:")
    people = [] if first.human.file is None else [("people", f"{first.human.file}, bins {list(first.human.bins)}")]
    return [
        ("images", place),
        *people,
        *(
            (run_name(config, configs), f"{config.model.backbone}, {config.training.epochs} epochs, {config.folder}")
            for config in configs
        ),
    ]


def run_name(config: SupervisedConfig, among: Sequence[SupervisedConfig]) -> str:
    """A run's name in figures: the config's name, with the seed if several runs have this name."""
    return f"{config.name}, seed {config.seed}" if sum(c.name == config.name for c in among) > 1 else config.name


def add_dynamics(histories: Sequence[History], groups: Groups, findings: Findings) -> dict[str, list[dict[str, Any]]]:
    """Put figures and tables of the runs' dynamics on a page.

    Args:
        histories: finished runs on the same test images.
        groups: the groups of these images.
        findings: receives the figures and tables.

    Returns:
        `groups`, `plateaus`, `final`, `pairs`, `norms` and, if human frequencies are known, `correlations`: the rows of
        the functions `group_rows`, `plateau_rows` and so on.
    """
    if any(history.ids != histories[0].ids for history in histories):
        raise UserError("dynamics: the runs have different test images; name runs with the same test images")
    rows = {
        "groups": [row for history in histories for row in group_rows(history, groups)],
        "plateaus": [row for history in histories for row in plateau_rows(history)],
        "final": final_rows(histories),
        "pairs": pair_rows(histories),
        "norms": [row for history in histories for row in norm_rows(history)],
    }
    names = [history.name for history in histories]
    findings.table("final", "After the last epoch", rows["final"], "Means over all test images.")
    known = groups.frequency is not None
    by = "by group of human selection frequency (HSF), hard to easy" if known else "of all images"
    for name, (title, unit) in FOLLOWED.items():
        own = [row for row in rows["groups"] if row["quantity"] == name]
        findings.figure(
            f"{name}_by_group",
            draw.groups_figure(own, names, unit, sharey=name not in OWN_SCALE),
            f"{_capital(title)} in training",
            f"Mean {unit}, {by}, after each epoch. Bands are 95 % intervals. Epoch 0 is the untrained network."
            + " Each network has its own scale." * (name in OWN_SCALE),
            own,
        )
    overall = [row for row in rows["groups"] if row["group"] == "all" and row["quantity"] in ("avh", "accuracy")]
    findings.figure(
        "models",
        draw.models_figure(overall, names),
        "Models side by side",
        "Mean AVH and accuracy of all test images after each epoch, one line per run.",
        overall,
    )
    findings.table(
        "plateaus",
        "Plateau epochs",
        rows["plateaus"],
        "The epoch after which a mean over all test images stays near its last value. Near means within a share of its "
        f"change from the untrained network. 95 % bootstrap intervals ({DRAWS:,} draws of the images).",
    )
    middle = [row for row in rows["plateaus"] if row["near, %"] == 100 * PLATEAU_SHARES[1]]
    findings.figure(
        "plateau_epochs",
        draw.plateaus_figure(middle, names),
        "Plateau epochs by run",
        "The epoch after which mean AVH, loss and accuracy of each run stay within "
        f"{100 * PLATEAU_SHARES[1]:g} % of their total change from their last value, with 95 % bootstrap intervals.",
        middle,
    )
    if rows["pairs"]:
        findings.table(
            "pairs",
            "Pairs of runs",
            rows["pairs"],
            "Accuracy (in points) and AVH (in 1 / K) of the better run minus those of the other run after the last "
            "epoch. The differences are paired by image and have standard errors.",
        )
    findings.table(
        "norms",
        "The norm in the two halves of a training",
        rows["norms"],
        "The change of the mean norm from the first to the middle epoch, and from there to the last. The changes are "
        "paired by image and have standard errors.",
    )
    if known:
        rows["correlations"] = [row for history in histories for row in correlation_rows(history, groups.frequency)]
        findings.figure(
            "correlation_in_training",
            draw.correlations_figure(rows["correlations"], names),
            "Correlation with people in training",
            "Spearman's rho of AVH, confidence and norm with human selection frequency after each epoch. Its sign is "
            "chosen so that a positive value is what the paper expects. Bands are 95 % intervals (Fisher z).",
            rows["correlations"],
        )
    return rows


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
