"""Rank correlations of scores with the human selection frequency (HSF), overall and by bin.

Source: Angular Visual Hardness (Chen et al., ICML 2020), section 4. Correlations are oriented: if easy images should
have small scores (AVH, loss...), the sign is reversed. A positive correlation then means what the paper expects.
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
    """Rows by model and score over all images, and rows by model, score and bin of HSF."""

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
    """Correlate scores with HSF, and add tables and figures to `findings`.

    Args:
        tables: scores by the model's name.
        human: HSF of the same images.
        bins: edges of bins of HSF. The first bin includes both edges, the others include the upper edge.
        reference: the score that the others are compared with.
        findings: receives the tables `correlations` and `correlations_by_bin`, the figure `correlations_summary` and
            the figures `histogram_<score>`.
        scores: scores to use; None: all scores of the tables.
        allow_missing: leave out images that only people or only the model have seen.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples, which are the same for all scores of a model.
        log: called with lines about images that are left out or in no bin.

    Returns:
        One row per model and score: model, score, n, Spearman's rho, Fisher's z and its interval, the bootstrap
        interval, Kendall's tau, the difference of rho from the reference's with the paired bootstrap's interval and p,
        and z and p of Meng, Rosenthal and Rubin. The rows by bin also have the mean of the score. In a bin with
        constant scores or frequencies, correlations are None. Intervals are 95 % intervals.

    Raises:
        UserError: ids do not match, a score is unknown, constant or not finite, or a bin has fewer than 10 images.
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
        "A positive correlation is what the paper expects: an image whose class more people pick is easier for the "
        f"classifier. The sign is reversed for {', '.join(turned) or 'no score'}"
        + (f"; not for {', '.join(unknown)}, whose direction is unknown." if unknown else ".")
        + "".join(f" {line}." for line in odd),
    )
    findings.figure(
        "correlations_summary",
        summary_figure(rows),
        "Spearman's rho with human selection frequency",
        "With 95 % bootstrap intervals. A positive value is what the paper expects.",
        rows,
    )
    findings.table(
        "correlations",
        "All images",
        rows,
        "rho is Spearman's. Its 95 % intervals are by Fisher's z (variance of Bonett and Wright, 2000) and by the "
        f"percentile bootstrap ({resamples:,} resamples). difference is rho minus that of {reference}, with the paired "
        "bootstrap's interval. z and p (two-sided) are those of the test of Meng, Rosenthal and Rubin (1992) on ranks.",
    )
    votes = (
        "The number of votes is whole, so each image is spread evenly over the frequencies around its share of votes. "
    )
    spread = "" if human.annotators is None else votes
    for name in names:
        panels = histogram_panels([one for one in joined if name in one.scores], name, by_bin)
        findings.figure(
            f"histogram_{name}",
            histogram_figure(panels, name),
            f"{name} and human selection frequency",
            f"Colour: number of images. {spread}Points: mean of each bin with its 95 % interval.",
            [cell for panel in panels for cell in panel.cells()],
            raster=True,
        )
    findings.table(
        "correlations_by_bin",
        "By bin of human selection frequency",
        by_bin,
        "The columns are those of all images. - if all frequencies or all scores of a bin are equal. The mean is the "
        "mean of the score, with Student's 95 % interval.",
    )
    return Correlations(rows, by_bin)


def _left_out(
    joined: Joined, group: np.ndarray, tables: Mapping[str, ScoreTable], human: HumanFrequencies
) -> Iterator[str]:
    """Lines about images that are in one file only, and about images that are in no bin."""
    count, scored = len(group), len(tables[joined.model])
    if count < max(scored, len(human)):
        yield (
            f"{joined.model}: {scored - count:,} of {scored:,} images are left out because people have not seen them, "
            f"and {len(human) - count:,} of {len(human):,} because they have no score"
        )
    if outside := int((group < 0).sum()):
        yield f"{joined.model}: {outside:,} of {count:,} images are in no bin; they count only among all images"


def group_by_frequency(joined: Joined, bins: Sequence[float]) -> np.ndarray:
    """The bin of each image, (N,) int64; -1 outside of all bins. Raises UserError if a bin has fewer than 10 images."""
    frequencies = joined.human.frequencies
    group = bin_numbers(frequencies, bins)
    counts = np.bincount(group[group >= 0], minlength=len(bins) - 1)
    few = [f"{bin_name(number, bins)} has {count}" for number, count in enumerate(counts) if count < FEWEST]
    if few:
        raise UserError(
            f"{joined.model}: a bin needs at least {FEWEST} images, but {', '.join(few)}; give wider bins in `bins`"
        )
    return group


def overall_rows(joined: Joined, reference: str, resamples: int = RESAMPLES, seed: int = 0) -> list[Row]:
    """One row per score over all images; see `correlate`."""
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
    """One row per score and bin over the bin's images; see `correlate`."""
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
    """The correlation of each score with the frequencies (N,). Values are None if one of the two is constant."""
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
    """The 2-D histograms of a score, one per model, with the same bins of the score."""
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
    """The main numbers as a table for the terminal."""
    wide = max(5, *(len(row["model"]) for row in rows))
    lines = [
        "rho: Spearman's rho with human selection frequency; a positive value is what the paper expects",
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
