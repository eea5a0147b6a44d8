"""How well scores agree with people: rank correlations with the human selection frequency (HSF), overall and by bin.

Source: Angular Visual Hardness (Chen et al., ICML 2020), section 4. Correlations are oriented: where a small score is
meant to go with an easy image (AVH, loss...) the sign is turned, so that positive means as the paper expects.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uda.core.errors import UserError
from uda.core.statistics import (
    bootstrap_p,
    compare_dependent,
    constant,
    fisher_interval,
    fisher_z,
    kendall,
    mean_interval,
    p_text,
    percentile_interval,
    resampled_spearman,
    spearman,
)
from uda.hardness.people.bins import bin_name, bin_numbers
from uda.hardness.people.correlate_figures import Panel, Point, frequency_columns, histogram_figure, summary_figure
from uda.hardness.people.human import HumanFrequencies
from uda.hardness.people.join import FEWEST, Joined, join_human
from uda.hardness.scoring.score_table import ScoreTable
from uda.hardness.scoring.scores import EASIER
from uda.report.findings import Findings, Row

RESAMPLES = 2000
SCORE_BINS = 30


@dataclass(frozen=True)
class Correlations:
    """Rows a model and score, of all images, and a model, score and bin of HSF."""

    overall: list[Row]
    by_bin: list[Row]


def correlate(
    tables: Mapping[str, ScoreTable],
    human: HumanFrequencies,
    bins: Sequence[float],
    reference: str,
    findings: Findings,
    *,
    scores: Sequence[str] | None = None,
    allow_missing: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> Correlations:
    """Correlations of scores with HSF, as tables and figures of `findings`.

    Args:
        tables: scores by the model's name.
        human: HSF of the same images.
        bins: edges of groups of HSF; the first group has both its edges, the others the upper one.
        reference: the score that the others are compared with.
        findings: takes the tables `correlations` and `correlations_by_bin`, the figure `correlations_summary` and a
            `histogram_<score>` each.
        scores: those to look at; None: all of the tables.
        allow_missing: leave out images that only people or only the model have seen.
        resamples: of the bootstrap.
        seed: of the resamples, the same ones for all scores of a model.
        log: told of images that are left out, or in no bin.

    Returns:
        A row a model and score: model, score, n, Spearman's rho, Fisher's z of it with the interval, the bootstrap's,
        Kendall's tau, and the difference of rho to the reference with the paired bootstrap's interval and p, and the
        z and p of Meng, Rosenthal and Rubin. By bin the same, None where scores or frequencies are constant in it,
        and the mean of the score. Intervals are of 95 %.

    Raises:
        UserError: ids that do not match, unknown scores, a score that is constant or not finite, fewer than 10 images
            in a bin.
    """
    joined = [join_human(name, table, human, scores, reference, allow_missing) for name, table in tables.items()]
    groups = [group_by_frequency(one, bins) for one in joined]
    odd = [line for one, group in zip(joined, groups, strict=True) for line in _left_out(one, group, tables, human)]
    for line in odd:
        log(line)
    rows = [row for one in joined for row in overall_rows(one, reference, resamples, seed)]
    by_bin = [
        row
        for one, group in zip(joined, groups, strict=True)
        for row in bin_rows(one, group, bins, reference, resamples, seed)
    ]
    names = list(dict.fromkeys(row["score"] for row in rows))
    turned = [name for name in names if EASIER.get(name) == -1]
    unknown = [name for name in names if name not in EASIER]
    findings.section(
        "Scores and human selection frequency",
        "Positive means as the paper expects: the more people pick an image's class, the easier the image is for the "
        f"classifier. The sign is turned of {', '.join(turned) or 'no score'}"
        + (f"; taken as they are, for what is easy is not known of them: {', '.join(unknown)}." if unknown else ".")
        + "".join(f" {line}." for line in odd),
    )
    findings.figure(
        "correlations_summary",
        summary_figure(rows),
        "Spearman's rho with human selection frequency",
        "Oriented, with the bootstrap's intervals of 95 %.",
        rows,
    )
    findings.table(
        "correlations",
        "All images",
        rows,
        f"rho is Spearman's; its intervals of 95 % are by Fisher's z (variance of Bonett and Wright, 2000) and by the "
        f"percentile bootstrap ({resamples:,} resamples); difference is rho less that of {reference}, with the paired "
        "bootstrap's interval, and z and p (two-sided) of the test of Meng, Rosenthal and Rubin (1992) on ranks.",
    )
    votes = (
        "An image's votes are whole numbers, so it is spread evenly over the frequencies that its share stands for. "
    )
    spread = "" if human.annotators is None else votes
    for name in names:
        panels = histogram_panels([one for one in joined if name in one.scores], name, by_bin)
        findings.figure(
            f"histogram_{name}",
            histogram_figure(panels, name),
            f"{name} and human selection frequency",
            f"Colour: number of images. {spread}Points: mean of each bin with its interval of 95 %.",
            [cell for panel in panels for cell in panel.cells()],
            raster=True,
        )
    findings.table(
        "correlations_by_bin",
        "By bin of human selection frequency",
        by_bin,
        "As of all images; - where the frequencies or the scores of a bin are all equal. The mean is of the score "
        "itself, with Student's interval of 95 %.",
    )
    return Correlations(rows, by_bin)


def _left_out(
    joined: Joined, group: np.ndarray, tables: Mapping[str, ScoreTable], human: HumanFrequencies
) -> Iterator[str]:
    """A line on images that one side alone has, and on those that are in no bin."""
    count, scored = len(group), len(tables[joined.model])
    if count < max(scored, len(human)):
        yield (
            f"{joined.model}: left out are {scored - count:,} of {scored:,} images that people have not seen, and "
            f"{len(human) - count:,} of {len(human):,} that have no score"
        )
    if outside := int((group < 0).sum()):
        yield f"{joined.model}: {outside:,} of {count:,} images are in no bin, but among all images"


def group_by_frequency(joined: Joined, bins: Sequence[float]) -> np.ndarray:
    """(N,) int64: the bin of each image, -1 outside all. Raises UserError for bins with fewer than 10 images."""
    frequencies = joined.human.frequencies
    group = bin_numbers(frequencies, bins)
    counts = np.bincount(group[group >= 0], minlength=len(bins) - 1)
    few = [f"{bin_name(number, bins)} has {count}" for number, count in enumerate(counts) if count < FEWEST]
    if few:
        raise UserError(
            f"{joined.model}: fewer than {FEWEST} images in a bin of human frequency: {', '.join(few)}; give "
            "wider ones by `bins`"
        )
    return group


def overall_rows(joined: Joined, reference: str, resamples: int = RESAMPLES, seed: int = 0) -> list[Row]:
    """A row a score, over all images; see `correlate`."""
    found = _correlations(joined.scores, joined.human.frequencies, reference, resamples, seed)
    return [{"model": joined.model, "score": name, **row} for name, row in found.items()]


def bin_rows(
    joined: Joined,
    group: np.ndarray,
    bins: Sequence[float],
    reference: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """A row a score and bin, of the images in it; see `correlate`."""
    members = [group == number for number in range(len(bins) - 1)]
    shared = [joined.human.frequencies[inside] for inside in members]
    found = [
        _correlations({n: v[inside] for n, v in joined.scores.items()}, own, reference, resamples, seed)
        for inside, own in zip(members, shared, strict=True)
    ]
    rows = []
    for name, values in joined.scores.items():
        for number, inside in enumerate(members):
            low, high = mean_interval(values[inside])
            rows.append({
                "model": joined.model, "score": name, "bin": bin_name(number, bins), **found[number][name],
                "mean_frequency": float(shared[number].mean()),
                "mean": float(values[inside].mean()), "mean_low": low, "mean_high": high,
            })  # fmt: skip
    return rows


def _correlations(
    scores: Mapping[str, np.ndarray], shared: np.ndarray, reference: str, resamples: int, seed: int
) -> dict[str, Row]:
    """By score what is known of its correlation with the frequencies (N,); None where one of the two is constant."""
    keys = (
        "rho", "z", "fisher_low", "fisher_high", "bootstrap_low", "bootstrap_high", "kendall",
        "difference", "difference_low", "difference_high", "difference_p", "meng_z", "meng_p",
    )  # fmt: skip
    found: dict[str, dict] = {name: {"n": len(shared), **dict.fromkeys(keys)} for name in scores}
    known = [] if constant(shared) else [name for name, values in scores.items() if not constant(values)]
    oriented = {name: EASIER.get(name, 1) * scores[name] for name in known}
    if not oriented:
        return found
    drawn = resampled_spearman(np.stack(list(oriented.values())), shared, resamples, np.random.default_rng(seed))
    by_name = dict(zip(oriented, drawn.T, strict=True))
    rho = {name: spearman(values, shared) for name, values in oriented.items()}
    for name, values in oriented.items():
        row = found[name]
        row["rho"], row["z"], row["kendall"] = rho[name], fisher_z(rho[name]), kendall(values, shared)
        row["fisher_low"], row["fisher_high"] = fisher_interval(rho[name], len(shared))
        row["bootstrap_low"], row["bootstrap_high"] = percentile_interval(by_name[name])
        if name != reference and reference in oriented:
            difference = by_name[name] - by_name[reference]
            test = compare_dependent(rho[name], rho[reference], spearman(values, oriented[reference]), len(shared))
            row["difference"] = rho[name] - rho[reference]
            row["difference_low"], row["difference_high"] = percentile_interval(difference)
            row["difference_p"], row["meng_z"], row["meng_p"] = bootstrap_p(difference), test.z, test.p
    return found


def histogram_panels(joined: Sequence[Joined], name: str, by_bin: Sequence[Row]) -> list[Panel]:
    """The 2-D histogram of a score for each model, in the same bins of the score."""
    everything = np.concatenate([one.scores[name] for one in joined])
    edges = np.histogram_bin_edges(everything, SCORE_BINS)
    panels = []
    for one in joined:
        columns, shares = frequency_columns(one.human.frequencies, one.human.annotators)
        rows = np.clip(np.searchsorted(edges, one.scores[name], side="right") - 1, 0, SCORE_BINS - 1)
        counts = np.stack([np.bincount(rows, weights=share, minlength=SCORE_BINS) for share in shares.T])
        means = [
            Point(row["mean_frequency"], row["mean"], row["mean_low"], row["mean_high"])
            for row in by_bin
            if row["model"] == one.model and row["score"] == name
        ]
        panels.append(Panel(one.model, columns, edges, counts, means))
    return panels


def text_table(rows: Sequence[Row], reference: str) -> str:
    """The main numbers, for a terminal."""
    wide = max(5, *(len(row["model"]) for row in rows))
    lines = [
        "rho: Spearman's with human selection frequency, positive where it is as the paper expects",
        f"less {reference}: difference of rho with its 95 % bootstrap interval, and p of Meng's test",
        f"{'model':<{wide}}  {'score':<14} {'n':>6}  {'rho':>6}  {'95 % bootstrap':<16}  {'tau':>6}  less {reference}",
    ]
    for row in rows:
        less = ""
        if row["difference"] is not None:
            less = (
                f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}], "
                f"p = {p_text(row['meng_p'])}"
            )
        interval = f"[{row['bootstrap_low']:.3f}, {row['bootstrap_high']:.3f}]"
        lines.append(
            f"{row['model']:<{wide}}  {row['score']:<14} {row['n']:>6}  {row['rho']:6.3f}  {interval:<16}  "
            f"{row['kendall']:6.3f}  {less}".rstrip()
        )
    return "\n".join(lines)
