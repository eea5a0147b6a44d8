"""Rank correlations: by hand with ties, as scipy has them, and where the truth is known."""

import math

import numpy as np
import pytest
from scipy.stats import norm, rankdata, spearmanr

from uda.core import statistics
from uda.core.statistics import (
    CorrelationTest,
    bootstrap_p,
    compare_dependent,
    fisher_interval,
    fisher_z,
    kendall,
    percentile_interval,
    resampled_spearman,
    spearman,
)


def test_correlations_by_hand_with_ties():
    """x = 1 2 2 3, y = 1 3 2 2: ranks 1, 2.5, 2.5, 4 and 1, 4, 2.5, 2.5.

    Less the mean 2.5: (-1.5, 0, 0, 1.5) and (-1.5, 1.5, 0, 0); products 2.25, squares 4.5 and 4.5: rho = 1/2.
    Six pairs: (1,2), (1,3), (1,4) concordant; (2,4) discordant; (2,3) tied in x, (3,4) in y: tau-b = 2 / sqrt(5 * 5).
    """
    x, y = np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 2])
    assert spearman(x, y) == pytest.approx(0.5)
    assert kendall(x, y) == pytest.approx(0.4)
    assert math.isnan(spearman(x, np.ones(4))) and math.isnan(kendall(np.ones(4), y))


def test_interval_by_hand():
    """rho = 0.5, n = 103: z = 0.549306, variance 1.125 / 100, reach 1.959964 * 0.106066 = 0.207886.

    tanh(0.341420) = 0.328745, tanh(0.757192) = 0.639420. Without the 1 + rho^2 / 2 it would be 0.3393 and 0.6323.
    """
    assert fisher_z(0.5) == pytest.approx(0.549306, abs=1e-6)
    assert fisher_interval(0.5, 103) == pytest.approx((0.328745, 0.639420), abs=1e-6)
    assert fisher_interval(-0.5, 103) == pytest.approx((-0.639420, -0.328745), abs=1e-6)
    assert fisher_interval(1.0, 10) == (1.0, 1.0)
    with pytest.raises(ValueError, match="needs at least 4 pairs"):
        fisher_interval(0.1, 3)


def pair_of_normals(generator, correlation, count):
    x = generator.normal(size=count)
    return x, correlation * x + math.sqrt(1 - correlation**2) * generator.normal(size=count)


def test_intervals_hold_the_true_value_as_often_as_they_say():
    """Of normals with correlation r, Spearman's rho is 6/pi asin(r/2). 95 % of 400: 380, standard deviation 4.4."""
    generator = np.random.default_rng(0)
    true = 6 / math.pi * math.asin(0.7 / 2)
    fisher = bootstrap = 0
    for _ in range(400):
        x, y = pair_of_normals(generator, 0.7, 60)
        low, high = fisher_interval(spearman(x, y), 60)
        fisher += low < true < high
        low, high = percentile_interval(resampled_spearman(x[None], y, 300, generator)[:, 0])
        bootstrap += low < true < high
    assert 366 <= fisher <= 394
    assert 360 <= bootstrap <= 394


@pytest.mark.parametrize("entries", [statistics.CHUNK_ENTRIES, 90])
def test_resamples_are_ranked_anew_with_ties_as_scipy_does(entries, monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK_ENTRIES", entries)
    generator = np.random.default_rng(1)
    scores = np.stack([generator.normal(size=30), generator.integers(4, size=30).astype(float)])
    shared = generator.integers(6, size=30) / 5
    found = resampled_spearman(scores, shared, 7, np.random.default_rng(5))
    again = np.random.default_rng(5)
    size = max(1, entries // 30)
    drawn = np.concatenate([again.integers(30, size=(min(size, 7 - s), 30)) for s in range(0, 7, size)])
    expected = [[spearmanr(row[rows], shared[rows]).statistic for row in scores] for rows in drawn]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_resample_without_variation_is_left_out():
    found = resampled_spearman(np.array([[1.0, 2.0]]), np.array([0.0, 1.0]), 50, np.random.default_rng(0))[:, 0]
    assert np.isnan(found).any() and np.isfinite(found).any()
    assert percentile_interval(found) == (1.0, 1.0)


def test_percentiles_by_hand():
    assert percentile_interval(np.append(np.arange(1001.0), math.nan)) == pytest.approx((25, 975))


def test_difference_by_hand():
    """The example of Meng, Rosenthal and Rubin: .63 and -.03 with N = 15 and -.19 between the two give Z = 1.68.

    r^2 = (.3969 + .0009) / 2 = .1989, f = 1.19 / 1.6022 = .74273, h = (1 - .14773) / .8011 = 1.06388;
    Z = (.74142 + .03001) sqrt(12 / (2 * 1.19 * 1.06388)) = .77143 * 2.17700 = 1.67940.
    """
    found = compare_dependent(0.63, -0.03, -0.19, 15)
    assert found.z == pytest.approx(1.6794, abs=1e-4)
    assert found.p == pytest.approx(2 * norm.sf(1.6794), abs=1e-5)
    assert compare_dependent(-0.03, 0.63, -0.19, 15) == CorrelationTest(-found.z, found.p)


def test_f_is_at_most_one():
    """r^2 = .5, r_x = -.5: (1 - r_x) / (2 * .5) = 1.5 counts as 1, so h = 1, Z = (.881374 - -.881374) sqrt(7 / 3)."""
    found = compare_dependent(math.sqrt(0.5), -math.sqrt(0.5), -0.5, 10)
    assert found.z == pytest.approx(2 * math.atanh(math.sqrt(0.5)) * math.sqrt(7 / 3))


def test_limits_of_the_difference():
    assert compare_dependent(0.4, 0.4, 1.0, 50) == CorrelationTest(0.0, 1.0)
    assert compare_dependent(1.0, 0.4, 0.4, 50) == CorrelationTest(math.inf, 0.0)
    with pytest.raises(ValueError, match="needs at least 4 rows"):
        compare_dependent(0.1, 0.2, 0.3, 3)


def test_equal_correlations_are_called_different_one_time_in_twenty():
    """Two equally good predictors, 600 times: 30 of p < .05, standard deviation 5.3. With a better one, most."""
    generator = np.random.default_rng(2)

    def share_found(noise):
        found = 0
        for _ in range(600):
            shared = generator.normal(size=80)
            common = generator.normal(size=80)
            first, second = (shared + 0.5 * common + s * generator.normal(size=80) for s in (0.7, noise))
            r = [spearman(a, b) for a, b in ((first, shared), (second, shared), (first, second))]
            found += compare_dependent(*r, 80).p < 0.05
        return found

    assert 14 <= share_found(0.7) <= 48
    assert share_found(1.5) > 450


def test_scipy_is_what_is_meant():
    generator = np.random.default_rng(3)
    x, y = generator.integers(9, size=(2, 200)).astype(float)
    assert spearman(x, y) == pytest.approx(np.corrcoef(rankdata(x), rankdata(y))[0, 1], abs=1e-12)


def test_bootstrap_p_is_twice_the_smaller_tail():
    """Of 99 draws 3 are at or below 0: 2 * 4 / 100; none: 2 / 100; all of them at 0: 1."""
    draws = np.concatenate([np.full(3, -0.1), np.full(96, 0.2)])
    assert bootstrap_p(draws) == bootstrap_p(-draws) == pytest.approx(0.08)
    assert bootstrap_p(np.full(99, 0.2)) == pytest.approx(0.02)
    assert bootstrap_p(np.zeros(99)) == 1
    assert bootstrap_p(np.append(np.full(99, 0.2), np.full(100, math.nan))) == pytest.approx(0.02), "nan is no draw"
