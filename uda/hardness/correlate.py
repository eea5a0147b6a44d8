"""How well scores agree with people: rank correlations with the human selection frequency (HSF), overall and by bin.

Source: Angular Visual Hardness (Chen et al., ICML 2020), section 4. Correlations are oriented: where a small score is
meant to go with an easy image (AVH, loss...) the sign is turned, so that positive means as the paper expects.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from uda.errors import UserError
from uda.hardness.bins import bin_name, bin_numbers
from uda.hardness.correlate_figures import Panel, Point, frequency_columns, histogram_figure, summary_figure
from uda.hardness.findings import Findings, Row
from uda.hardness.human import HumanFrequencies
from uda.hardness.join import FEWEST, Joined, join_human
from uda.hardness.scores import EASIER, ScoreTable
from uda.hardness.statistics import (
    bootstrap_p,
    compare_dependent,
    fisher_interval,
    fisher_z,
    kendall,
    percentile_interval,
    resampled_spearman,
    spearman,
)

RESAMPLES = 2000
SCORE_BINS = 30


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
) -> list[Row]:
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

    Returns:
        A row a model and score: model, score, n, Spearman's rho with the interval by Fisher's z and the bootstrap's,
        Kendall's tau, and the difference of rho to the reference with the paired bootstrap's interval and p, and the
        z and p of Meng, Rosenthal and Rubin. Intervals are of 95 %.

    Raises:
        UserError: ids that do not match, unknown scores, a score that is constant or not finite, fewer than 10 images
            in a bin.
    """
    joined = [join_human(name, table, human, scores, reference, allow_missing) for name, table in tables.items()]
    groups = [group_by_frequency(one, bins) for one in joined]
    rows = [row for one in joined for row in overall_rows(one, reference, resamples, seed)]
    by_bin = [row for one, group in zip(joined, groups, strict=True) for row in bin_rows(one, group, bins)]
    names = list(dict.fromkeys(row["score"] for row in rows))
    turned = [name for name in names if EASIER.get(name) == -1]
    unknown = [name for name in names if name not in EASIER]
    findings.section(
        "Scores and human selection frequency",
        "Positive means as the paper expects: the more people pick an image's class, the easier the image is for the "
        f"classifier. The sign is turned of {', '.join(turned) or 'no score'}"
        + (f"; taken as they are, for what is easy is not known of them: {', '.join(unknown)}." if unknown else "."),
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
        "rho and kendall are oriented, z is Fisher's of rho; the mean is of the score itself, with Student's "
        "interval of 95 %.",
    )
    return rows


def group_by_frequency(joined: Joined, bins: Sequence[float]) -> np.ndarray:
    """(N,) int64: the bin of each image, -1 outside all. Raises UserError for bins with fewer than 10 images."""
    frequencies = joined.human.frequencies
    group = bin_numbers(frequencies, bins)
    counts = np.bincount(group[group >= 0], minlength=len(bins) - 1)
    few = [f"{bin_name(number, bins)} has {count}" for number, count in enumerate(counts) if count < FEWEST]
    if few:
        raise UserError(
            f"{joined.model}: fewer than {FEWEST} images in a bin of human frequency: {', '.join(few)}; give "
            "wider ones by --bins"
        )
    return group


def overall_rows(joined: Joined, reference: str, resamples: int = RESAMPLES, seed: int = 0) -> list[Row]:
    """A row a score, over all images; see `correlate`."""
    shared = joined.human.frequencies
    oriented = {name: EASIER.get(name, 1) * values for name, values in joined.scores.items()}
    drawn = resampled_spearman(np.stack(list(oriented.values())), shared, resamples, np.random.default_rng(seed))
    by_name = dict(zip(oriented, drawn.T, strict=True))
    rho = {name: spearman(values, shared) for name, values in oriented.items()}
    rows = []
    for name, values in oriented.items():
        low, high = fisher_interval(rho[name], len(shared))
        bootstrap = percentile_interval(by_name[name])
        row: dict[str, Any] = {
            "model": joined.model, "score": name, "n": len(shared), "rho": rho[name],
            "fisher_low": low, "fisher_high": high, "bootstrap_low": bootstrap[0], "bootstrap_high": bootstrap[1],
            "kendall": kendall(values, shared),
        }  # fmt: skip
        other = dict.fromkeys(("difference", "difference_low", "difference_high", "difference_p", "meng_z", "meng_p"))
        if name != reference:
            low, high = percentile_interval(by_name[name] - by_name[reference])
            between = spearman(values, oriented[reference])
            test = compare_dependent(rho[name], rho[reference], between, len(shared))
            other = {
                "difference": rho[name] - rho[reference], "difference_low": low, "difference_high": high,
                "difference_p": bootstrap_p(by_name[name] - by_name[reference]),
                "meng_z": test.z, "meng_p": test.p,
            }  # fmt: skip
        rows.append(row | other)
    return rows


def bin_rows(joined: Joined, group: np.ndarray, bins: Sequence[float]) -> list[Row]:
    """A row a score and bin: n, rho and tau (None where either is constant), Fisher's z and interval, the mean."""
    rows = []
    for name, values in joined.scores.items():
        for number in range(len(bins) - 1):
            inside = group == number
            some, shared = values[inside], joined.human.frequencies[inside]
            rho = spearman(EASIER.get(name, 1) * some, shared)
            tau = kendall(EASIER.get(name, 1) * some, shared)
            known = not math.isnan(rho)
            low, high = fisher_interval(rho, len(some)) if known else (None, None)
            reach = student.ppf(0.975, len(some) - 1) * some.std(ddof=1) / math.sqrt(len(some))
            mean = float(some.mean())
            rows.append({
                "model": joined.model, "score": name, "bin": bin_name(number, bins), "n": len(some),
                "rho": rho if known else None, "kendall": tau if known else None,
                "z": fisher_z(rho) if known else None, "low": low, "high": high,
                "mean_frequency": float(shared.mean()),
                "mean": mean, "mean_low": mean - float(reach), "mean_high": mean + float(reach),
            })  # fmt: skip
    return rows


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
        f"{'model':<{wide}}  {'score':<14} {'n':>6}  {'rho':>6}  {'95 % bootstrap':<16}  {'tau':>6}  less {reference}",
    ]
    for row in rows:
        less = ""
        if row["difference"] is not None:
            less = (
                f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}], "
                f"p = {row['meng_p']:.2g}"
            )
        interval = f"[{row['bootstrap_low']:.3f}, {row['bootstrap_high']:.3f}]"
        lines.append(
            f"{row['model']:<{wide}}  {row['score']:<14} {row['n']:>6}  {row['rho']:6.3f}  {interval:<16}  "
            f"{row['kendall']:6.3f}  {less}".rstrip()
        )
    return "\n".join(lines)
