"""How scores move while networks learn, by groups of images that people find easier or harder (Discoveries 1 to 5).

Source: Chen et al., ICML 2020, section 4. `plateau_epoch` says what "plateaus" means here.
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

#: Quantities that are followed by group: name, and name with unit.
FOLLOWED = {
    "avh": ("AVH", "AVH, in 1 / K"),
    "loss": ("loss", "loss, nats"),
    "accuracy": ("accuracy", "accuracy, %"),
    "confidence": ("confidence", "confidence, p of the label"),
    "norm": ("norm", "norm of x"),
}
#: What `correlate`'s options are called in the config of a run.
HUMAN_SETTINGS = {
    "human": "human.file",
    "kind": "human.format",
    "id_column": "human.id_column",
    "frequency_column": "human.frequency_column",
    "allow_missing": "human.allow_missing=true",
    "bins": "human.bins",
}
#: Those whose unit is each network's own.
OWN_SCALE = ("norm",)
#: Scores whose correlation with people is followed.
CORRELATED = ("avh", "confidence", "norm")

#: What counts as near the end of a curve's way: the middle one, and, since the word is anyone's to choose, two others.
PLATEAU_SHARES = (0.02, 0.05, 0.1)
DRAWS = 1000


@dataclass(frozen=True)
class History:
    """A finished run, epoch by epoch; epoch 0 is the network before training."""

    name: str
    """For legends and tables."""
    ids: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    """(E, N) by name: every score, and `accuracy` (0 or 1)."""
    num_classes: int
    records: Sequence[Mapping[str, Any]]
    """`epochs/NN.json`, (E)."""

    @property
    def epochs(self) -> np.ndarray:
        """0..E-1."""
        return np.arange(len(self.records))


def load_history(folder: Path, name: str) -> History:
    """What a finished run has left. Raises UserError where it is not finished."""
    if not all((folder / name).is_file() for name in ("results.json", "scores.csv")):
        raise UserError(f"{folder}: no finished run of `uda hardness dynamics`")
    records = read_epochs(folder)
    values = {score: read_epoch_scores(folder, score) for score in records[0]["scores"]}
    values["accuracy"] = read_epoch_scores(folder, "right").astype(np.float64)
    return History(name, read_scores(folder / "scores.csv").ids, values, len(records[0]["per_class"]), records)


@dataclass(frozen=True)
class Groups:
    """Images by what people say of them."""

    names: tuple[str, ...]
    """From hard to easy, with the edges: `(0.8, 1]`."""
    members: np.ndarray
    """(N,) int64, number of each image's group, -1 of images that people have not seen."""
    frequency: np.ndarray | None
    """(N,) human selection frequency, 0..1, nan of those; None where nothing is known and all images are one group."""

    @classmethod
    def by_frequency(cls, frequency: np.ndarray, edges: Sequence[float]) -> "Groups":
        """Groups [e0, e1], (e1, e2], ... Raises UserError for a frequency outside of all; nan is in none."""
        names = tuple(bin_name(number, edges) for number in range(len(edges) - 1))
        unseen = np.isnan(frequency)
        members = np.where(unseen, -1, bin_numbers(frequency, edges))
        if outside := int((members[~unseen] < 0).sum()):
            raise UserError(
                f"human.bins: {outside} frequencies lie outside [{edges[0]:g}, {edges[-1]:g}]; let them run from 0 to 1"
            )
        return cls(names, members, frequency)

    @classmethod
    def one(cls, count: int) -> "Groups":
        """All images."""
        return cls(("all",), np.zeros(count, np.int64), None)

    def sizes(self) -> np.ndarray:
        """Images in each group."""
        return np.bincount(self.members[self.members >= 0], minlength=len(self.names))


def scaled(history: History, name: str) -> np.ndarray:
    """A followed quantity in the unit of its figure, (E, N): AVH times K, accuracy in per cent."""
    factor = {"avh": history.num_classes, "accuracy": 100.0}.get(name, 1.0)
    return factor * history.values[name]


def group_rows(history: History, groups: Groups) -> list[dict[str, Any]]:
    """Mean of every followed quantity by epoch and group, and of all images, with 95 % intervals.

    Wilson's of the accuracy, Student's of the others; None where a group has one image.
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
    """95 % interval of the mean of a followed quantity (N,)."""
    from uda.core.statistics import mean_interval, share_interval

    if name == "accuracy":
        low, high = share_interval(int((values > 0).sum()), len(values))
        return 100 * low, 100 * high
    return mean_interval(values) if len(values) > 1 else (None, None)


def plateau_epoch(curve: np.ndarray, share: float) -> np.ndarray:
    """The epoch from which on a curve stays near its end, (..., E) -> (...), between epochs on a straight line.

    Near: within `share` of the way from the first value to the last one. A curve that goes beyond its end has not come
    to rest before it is back. A learning rate that falls to 0 brings every curve to rest at the end; what can be
    compared is which of several curves of one run is there first.
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
    """Plateau epochs of mean AVH, loss and accuracy, and how much earlier AVH's is, with bootstrap intervals.

    A row a share of PLATEAU_SHARES and quantity. Images are drawn anew, the same ones for all three, so the intervals
    say what other test images of the same kind could have given; another training is another run, whose curves go up
    and down in other epochs. A curve that does so by more than the share is near its end late; with a larger share it
    is earlier, which is what the several shares are for.
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
    """Every two runs after their last epochs: what the more accurate one is ahead by, means paired by image.

    Accuracy in points and AVH in 1 / K of `better` less those of `run`, each with its standard error.
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
    """The mean norm's change from the first epoch to the middle one, and from there to the end, paired by image."""
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
    """Mean and its standard error."""
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))


def correlation_rows(history: History, frequency: np.ndarray) -> list[dict[str, Any]]:
    """Spearman's rho of scores with human frequency after every epoch, positive where it is as the paper expects.

    Of the images that people have seen, whose frequency is not nan.
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
    """What each run came to, a row a run, the best one first."""
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
    """What people say of N test images."""

    human: HumanFrequencies
    """Of those that they have seen."""
    frequency: np.ndarray
    """(N,) human selection frequency, nan of those that they have not seen."""


@naming(HUMAN_SETTINGS)
def human_of(
    config: SupervisedConfig, ids: Sequence[str], labels: Sequence[str], log: Callable[[str], None] = print
) -> People | None:
    """What people say of a config's test images, in the order of `ids`; None where it names no human file.

    Raises UserError as `read_human`, `join` and `check_classes` do; `labels` are the images' classes.
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
        log(f"people have seen {len(seen):,} of the {len(ids):,} test images: groups and correlations are of those")
    return People(seen, frequency)


def groups_of(
    config: SupervisedConfig, ids: Sequence[str], labels: Sequence[str], log: Callable[[str], None] = print
) -> Groups:
    """A config's groups of its test images, one group where it names no human file. Raises UserError."""
    people = human_of(config, ids, labels, log)
    if people is None:
        return Groups.one(len(ids))
    groups = Groups.by_frequency(people.frequency, config.human.bins)
    few = [f"{name} has {size}" for name, size in zip(groups.names, groups.sizes(), strict=True) if size < FEWEST]
    if few:
        raise UserError(
            f"human.bins: fewer than {FEWEST} test images in a bin of human frequency: {', '.join(few)}; make it wider"
        )
    return groups


def find_human(config: SupervisedConfig) -> Path:
    """The human file of a config: a path, or a file of that name in the data set's folder."""
    path = Path(config.human.file)
    if path.is_file():
        return path
    if config.data.dataset is None:
        below = Path(config.data.root or "") / path
        return below if below.is_file() else path
    found = load_card(config.data.dataset).find_root(config.data.root) / path
    if not found.is_file() and config.data.dataset == "cifar10":
        raise UserError(
            f"human.file: neither {path} nor {found} is there; CIFAR-10H is at "
            "https://github.com/jcpeterson/cifar-10h: human.file=cifar10h-raw.zip (`all`: set=[human.file=...])"
        )
    return found


def require_comparable(configs: Sequence[SupervisedConfig]) -> None:
    """Raise UserError for two runs of one name or one folder, and for runs that are scored on different images."""
    names = [run_name(config, configs) for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two runs are '{name}': give one of them another name, or another seed")
    folders = [config.folder for config in configs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"two runs would share {folder}: put {{name}} and {{seed}} into output=...")
    places = [f"{config.data.dataset}:{config.data.test}".removeprefix("None:") for config in configs]
    for name, place in zip(names, places, strict=True):
        if place != places[0]:
            raise UserError(
                f"runs stand side by side on the same test images, but '{name}' is scored on {place}, '{names[0]}' on "
                f"{places[0]}"
            )


def report_dynamics(configs: Sequence[SupervisedConfig], folder: Path) -> Path:
    """Write the page of some configs' finished runs, with its figures and data; returns its path."""
    histories = [load_history(config.folder, run_name(config, configs)) for config in configs]
    groups = groups_of(configs[0], histories[0].ids, read_scores(configs[0].folder / "scores.csv").labels)
    findings = Findings(
        folder, "Hardness in training", f"Scores of {len(histories[0].ids):,} test images after every epoch."
    )
    add_dynamics(histories, groups, findings)
    return findings.write(facts_of(configs))


def facts_of(configs: Sequence[SupervisedConfig]) -> list[tuple[str, str]]:
    """What was run, for the page."""
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
    """A run's name in figures: the config's, with the seed where it has several."""
    return f"{config.name}, seed {config.seed}" if sum(c.name == config.name for c in among) > 1 else config.name


def add_dynamics(histories: Sequence[History], groups: Groups, findings: Findings) -> dict[str, list[dict[str, Any]]]:
    """Put figures and tables of some runs' dynamics on a page.

    Args:
        histories: finished runs on the same test images.
        groups: of these images.
        findings: receives them.

    Returns:
        `groups`, `plateaus`, `final`, `pairs`, `norms` and, where people's frequencies are known, `correlations`:
        rows of the functions of those names.
    """
    if any(history.ids != histories[0].ids for history in histories):
        raise UserError("dynamics: the runs were scored on different images; give runs of the same test images")
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
            f"Mean {unit}, {by}, after each epoch; bands are 95 % intervals. Epoch 0 is the untrained network."
            + " Each network has a scale of its own." * (name in OWN_SCALE),
            own,
        )
    overall = [row for row in rows["groups"] if row["group"] == "all" and row["quantity"] in ("avh", "accuracy")]
    findings.figure(
        "models",
        draw.models_figure(overall, names),
        "Models side by side",
        "Mean AVH and accuracy of all test images after each epoch, a line a run.",
        overall,
    )
    findings.table(
        "plateaus",
        "When curves come to rest",
        rows["plateaus"],
        "The epoch from which on a mean over all test images stays near its end, within a share of its way from the "
        f"untrained network, with 95 % bootstrap intervals ({DRAWS:,} draws of the images).",
    )
    middle = [row for row in rows["plateaus"] if row["near, %"] == 100 * PLATEAU_SHARES[1]]
    findings.figure(
        "plateau_epochs",
        draw.plateaus_figure(middle, names),
        "Plateau epochs",
        "The epoch from which on mean AVH, loss and accuracy of each run stay within "
        f"{100 * PLATEAU_SHARES[1]:g} % of their way from their end, with 95 % bootstrap intervals.",
        middle,
    )
    if rows["pairs"]:
        findings.table(
            "pairs",
            "Runs two by two",
            rows["pairs"],
            "After the last epoch: accuracy in % and AVH in 1 / K of the better run less those of the other one, means "
            "paired by image, with their standard errors.",
        )
    findings.table(
        "norms",
        "The norm in the two halves of a training",
        rows["norms"],
        "The mean norm's change from the first epoch to the middle one and from there to the last, paired by image, "
        "with its standard error.",
    )
    if known:
        rows["correlations"] = [row for history in histories for row in correlation_rows(history, groups.frequency)]
        findings.figure(
            "correlation_in_training",
            draw.correlations_figure(rows["correlations"], names),
            "Correlation with people in training",
            "Spearman's rho of AVH, confidence and norm with human selection frequency after each epoch, turned so "
            "that positive is what the paper expects; bands are 95 % (Fisher z).",
            rows["correlations"],
        )
    return rows


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
