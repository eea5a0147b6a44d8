"""Rank correlations, paired differences, their intervals and tests.

`scipy.stats` is imported when it is first used.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

#: Largest number of entries of an array while resampling.
CHUNK_ENTRIES = 2_000_000
#: Draws of the paired bootstrap.
DRAWS = 10_000
#: Fewest values of a stratum for an interval. With fewer it would be little more than the range of the values.
LEAST_SEEDS = 5


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rho of two (N,) arrays: -1..1, nan if either is constant. Ties get their mean rank."""
    if constant(first) or constant(second):
        return math.nan
    return float(scipy.stats.spearmanr(first, second).statistic)


def kendall(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's tau-b of two (N,) arrays: -1..1, nan if either is constant."""
    return float(scipy.stats.kendalltau(first, second).statistic)


def constant(values: np.ndarray) -> bool:
    """Whether all entries are the same."""
    return bool((values == values[0]).all())


def fisher_z(rho: float) -> float:
    """Fisher's z, artanh(rho)."""
    return math.copysign(math.inf, rho) if abs(rho) >= 1 else math.atanh(rho)


def fisher_interval(rho: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of Spearman's rho by Fisher's z with the variance (1 + rho^2 / 2) / (n - 3).

    Source: Bonett and Wright, Sample size requirements for estimating Pearson, Kendall and Spearman correlations,
    Psychometrika 65 (2000). The variance for Pearson's correlation, 1 / (n - 3), makes intervals of rho too short.

    Args:
        rho: Spearman's rho of `count` pairs.
        count: number of pairs, at least 4.
        level: confidence level, the share of intervals that contain the true rho.
    """
    reach = scipy.stats.norm.ppf((1 + level) / 2) * _error_of_z(rho, count)
    z = fisher_z(rho)
    return math.tanh(z - reach), math.tanh(z + reach)


def fisher_p(rho: float, count: int) -> float:
    """Two-sided p of a true Spearman's rho of 0: 1 - the level at which `fisher_interval` ends at 0."""
    return float(2 * scipy.stats.norm.sf(abs(fisher_z(rho)) / _error_of_z(rho, count)))


def _error_of_z(rho: float, count: int) -> float:
    if count < 4:
        raise ValueError(f"an interval of rho needs at least 4 pairs, got {count}")
    return math.sqrt((1 + rho**2 / 2) / (count - 3))


def resampled_spearman(
    scores: np.ndarray, shared: np.ndarray, resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """Spearman's rho of each score with one shared variable, in bootstrap resamples of the N rows.

    Ranks are computed within each resample. Rows that are drawn repeatedly are ties. A resample is a count of each row.
    The mean rank of a value is then the number of draws below it, plus half of (its own draws + 1), so nothing is
    sorted again. All scores have the same resamples, so differences of columns are paired.

    Args:
        scores: (S, N).
        shared: (N,).
        resamples: B.
        generator: draws the resamples.

    Returns:
        (B, S), nan if a column is constant in a resample.
    """
    count = len(shared)
    columns = [_Sorted(values) for values in (shared, *scores)]
    found = np.empty((resamples, len(scores)))
    step = max(1, CHUNK_ENTRIES // count)
    for start in range(0, resamples, step):
        drawn = generator.integers(count, size=(min(step, resamples - start), count))
        rows = np.arange(len(drawn))[:, None] * count
        draws = np.bincount((drawn + rows).ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)
        reference, *others = (column.centred_ranks(draws) for column in columns)
        weighted = draws * reference
        own = np.einsum("bn,bn->b", weighted, reference)
        for number, ranks in enumerate(others):
            spread = np.einsum("bn,bn,bn->b", draws, ranks, ranks)
            product = np.einsum("bn,bn->b", weighted, ranks)
            with np.errstate(invalid="ignore"):
                found[start : start + step, number] = product / np.sqrt(spread * own)
    return found


class _Sorted:
    """A column's order and ties, computed once for all resamples."""

    def __init__(self, values: np.ndarray):
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(values) - 1)
        self.group = np.empty(len(values), dtype=np.int64)
        self.group[self.order] = np.searchsorted(self.last, np.arange(len(values)))

    def centred_ranks(self, draws: np.ndarray) -> np.ndarray:
        """Draws of each row (B, N) -> its mean rank in each resample minus the mean of all ranks (B, N)."""
        upto = draws[:, self.order].cumsum(1)[:, self.last]
        below = np.concatenate([np.zeros((len(draws), 1)), upto[:, :-1]], axis=1)
        ranks = (below + upto + 1) / 2 - (draws.shape[1] + 1) / 2
        return ranks[:, self.group]


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    interval = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean of (N,) values, N at least 2."""
    reach = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The bootstrap's percentile interval of resampled values (B,). nan values do not count."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of 0 among resampled differences (B,): twice the smaller tail, never below 2 / (B + 1).

    nan values do not count, and B is without them.
    """
    differences = differences[~np.isnan(differences)]
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(differences) + 1))


def p_text(p: float) -> str:
    """A p value with one digit, or `< 1e-300` if it is too small for a float."""
    return f"{p:.1g}" if p > 0 else "< 1e-300"


@dataclass(frozen=True)
class CorrelationTest:
    """The result of a test of two dependent correlations."""

    z: float
    """The statistic. It is standard normal if the true correlations are equal."""
    p: float
    """The two-sided p value."""


def compare_dependent(first: float, second: float, between: float, count: int) -> CorrelationTest:
    """Test of the difference of two correlations that share a variable.

    Z = (z_1 - z_2) sqrt((N - 3) / (2 (1 - r_x) h)), h = (1 - f r^2) / (1 - r^2), f = (1 - r_x) / (2 (1 - r^2)), at most
    1. r^2 is the mean of the two squares, r_x the correlation between the two predictors, and z Fisher's z.
    Source: Meng, Rosenthal and Rubin, Comparing correlated correlation coefficients, Psychological Bulletin 111 (1992).
    The test was made for Pearson's correlations of normal variables. For Spearman's, which is Pearson's of the ranks,
    it is an approximation. Read it together with the bootstrap's interval.

    Args:
        first: correlation of the first predictor with the shared variable.
        second: correlation of the second predictor with the shared variable.
        between: correlation of the two predictors.
        count: number of rows, at least 4.

    Returns:
        z is positive if the first correlation is larger. If both predictors order the rows in the same way, there is no
        difference to test, so z is 0 and p is 1.
    """
    if count < 4:
        raise ValueError(f"the test needs at least 4 rows, got {count}")
    if between > 1 - 1e-12:
        return CorrelationTest(0.0, 1.0)
    if max(abs(first), abs(second)) >= 1:
        z = math.copysign(math.inf, first - second)
        return CorrelationTest(z, 0.0)
    square = (first**2 + second**2) / 2
    f = min(1.0, (1 - between) / (2 * (1 - square)))
    h = (1 - f * square) / (1 - square)
    z = (fisher_z(first) - fisher_z(second)) * math.sqrt((count - 3) / (2 * (1 - between) * h))
    return CorrelationTest(z, float(2 * scipy.stats.norm.sf(abs(z))))


@dataclass(frozen=True)
class PairedDifference:
    """A mean of paired differences."""

    mean: float
    count: int
    """Number of differences."""
    interval: tuple[float, float] | None
    """95 % interval; None if a stratum has fewer than `LEAST_SEEDS` values."""


def paired_bootstrap(differences: Mapping[Hashable, Sequence[float]]) -> PairedDifference | None:
    """Mean of paired differences with its percentile bootstrap interval of 95 %: 10,000 draws, seeded.

    Values are drawn with replacement within each stratum, because the strata are fixed and their values are a sample.
    In a table of runs a stratum is a pair of domains, with a value for each seed. With five values the interval is
    somewhat too narrow, as for every bootstrap of few values. With fewer there is no interval.

    Args:
        differences: the differences of each stratum.

    Returns:
        None without differences.
    """
    strata = [np.asarray(values, dtype=np.float64) for values in differences.values() if len(values)]
    if not strata:
        return None
    count, interval = sum(map(len, strata)), None
    if min(map(len, strata)) >= LEAST_SEEDS:
        generator = np.random.default_rng(0)
        sums = [values[generator.integers(len(values), size=(DRAWS, len(values)))].sum(1) for values in strata]
        low, high = np.quantile(np.sum(sums, axis=0) / count, (0.025, 0.975))
        interval = (float(low), float(high))
    return PairedDifference(float(np.concatenate(strata).mean()), count, interval)
