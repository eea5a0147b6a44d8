"""The paper's claims on made-up rows: what makes each of them hold, hold partly, or not."""

import pytest

from uda.core.statistics import p_text
from uda.hardness.study.claims import (
    better_models,
    holds_throughout,
    norm_is_inconsistent,
    plateaus_first,
    stronger_than,
    verdict,
)


@pytest.mark.parametrize(
    ("bearing", "against", "of", "expected"),
    [
        (3, 0, 3, "holds"),
        (2, 1, 3, "holds partly"),
        (2, 2, 4, "does not hold"),  # as many against it
        (2, 0, 4, "holds partly"),
        (1, 0, 3, "does not hold"),  # less than half
        (0, 0, 0, "not tested"),
    ],
)
def test_a_claim_needs_every_case_or_half_of_them_and_more_than_are_against(bearing, against, of, expected):
    assert verdict(bearing, against, of) == expected


def correlation(model, difference, meng, bootstrap, score="avh"):
    return {
        "model": model, "score": score, "rho": 0.4, "difference": difference, "meng_p": meng, "difference_p": bootstrap,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ([(0.1, 0.01, 0.01), (0.2, 1e-9, 1e-3)], "holds"),
        ([(0.1, 0.01, 0.01), (0.2, 0.03, 1e-3)], "holds partly"),  # .03 is not below .05 / 2
        ([(0.1, 0.01, 0.01), (0.2, 1e-9, 0.03)], "holds partly"),  # nor is the bootstrap's
        ([(0.1, 1e-3, 1e-3), (-0.2, 1e-9, 1e-3)], "does not hold"),
        ([(-0.1, 1e-9, 1e-3), (0.2, 0.5, 0.5)], "does not hold"),
    ],
)
def test_stronger_needs_both_tests(found, verdict):
    rows = [correlation(f"m{number}", *row) for number, row in enumerate(found)]
    claim = stronger_than("confidence", [*rows, correlation("m0", None, None, None, score="confidence")])
    assert claim["verdict"] == verdict and "m1 0.400" in claim["evidence"] and "than confidence" in claim["claim"]


def plateau(run, epochs, lows, highs=(0, 9, 9), trained=15, near=5):
    names = ("avh", "loss", "accuracy")
    return [
        {
            "run": run, "near, %": near, "quantity": name, "epochs": trained, "plateau epoch": epoch,
            "after AVH, low": low, "after AVH, high": high,
        }
        for name, epoch, low, high in zip(names, epochs, lows, highs, strict=True)
    ]  # fmt: skip


def test_plateaus_first_needs_both_curves_later_and_epochs_enough():
    both, one = plateau("a", (3, 5.2, 6), (0, 1, 2)), plateau("b", (3, 5, 3), (0, 1, -1))
    after = plateau("c", (9, 5, 3), (0, -5, -7), (0, -3, -5))
    assert plateaus_first(both)["verdict"] == "holds"
    assert plateaus_first([*both, *one])["verdict"] == "holds partly"
    assert plateaus_first([*both, *after])["verdict"] == "does not hold"
    assert plateaus_first(one)["verdict"] == "does not hold"
    assert plateaus_first(plateau("a", (3, 5, 3), (0, 1, 0)))["verdict"] == "does not hold", (
        "an interval that ends at 0"
    )
    part_after, equal = (
        plateau("d", (9, 5, 9), (0, -5, -1), (0, -3, 1)),
        plateau("e", (9, 5, 9), (0, -5, -1), (0, -3, 0)),
    )
    for row in (part_after, equal):
        assert "after both in 0" in plateaus_first(row)["evidence"]
    short = plateaus_first([*both, *plateau("d", (1, 1, 1), (0, 0, 0), trained=3)])
    assert short["verdict"] == "holds" and "fewer than 10 epochs: d" in short["evidence"]
    assert "a: AVH 3.0, loss 5.2, accuracy 6.0" in short["evidence"]
    assert plateaus_first(plateau("d", (1, 1, 1), (0, 0, 0), trained=3))["verdict"] == "not tested"


def test_plateaus_first_needs_all_shares_of_the_way():
    both, other = plateau("a", (3, 5.2, 6), (0, 1, 2)), plateau("a", (9, 5, 6), (0, -4, -3), near=10)
    claim = plateaus_first([*both, *other])
    assert claim["verdict"] == "does not hold" and "a: AVH 3.0, loss 5.2, accuracy 6.0" in claim["evidence"]
    assert "for each of 5, 10 % of a curve's change" in claim["rule"]
    early = plateau("a", (1, 2, 3), (0, 0.5, 1), near=10)
    assert plateaus_first([*both, *early])["verdict"] == "holds"
    after = plateau("a", (9, 5, 3), (0, -5, -7), (0, -3, -5))
    assert "after both in 0" in plateaus_first([*after, *early])["evidence"]


def pair(avh, accuracy=5.0, error=0.01):
    return {"better": "x", "run": "y", "accuracy": accuracy, "accuracy_error": 1.0, "avh": avh, "avh_error": error}


@pytest.mark.parametrize(
    ("pairs", "verdict", "evidence"),
    [
        ([pair(-0.1), pair(-0.2)], "holds", "in 2 of 2 pairs, the opposite in 0"),
        (
            [pair(-0.1), pair(0.2, accuracy=1.0)],
            "holds",
            "in 1 of 1 pairs, the opposite in 0; pairs with equal accuracy: 1",
        ),
        ([pair(-0.1), pair(-0.02)], "holds partly", "in 1 of 2 pairs, the opposite in 0"),  # 2 errors: less than 2.24
        (
            [pair(-0.1), pair(0.1, accuracy=2.1)],
            "holds",
            "in 1 of 1 pairs, the opposite in 0; pairs with equal accuracy: 1",
        ),  # nor are 2.1
        ([pair(-0.02, accuracy=5.0)], "holds", "in 1 of 1 pairs"),  # one case: 1.96
        ([pair(-0.1), pair(0.1)], "does not hold", "in 1 of 2 pairs, the opposite in 1"),
        ([pair(-0.1, accuracy=1.0)], "not tested", "in 0 of 0 pairs"),
    ],
)
def test_better_models_are_compared_in_pairs_that_differ(pairs, verdict, evidence):
    claim = better_models(pairs)
    assert claim["verdict"] == verdict and claim["evidence"].startswith(evidence)


def norms(first, second, run="a", epochs=15):
    middle = (epochs + 1) // 2
    ends = {"first": 1, "last": middle}, {"first": middle, "last": epochs}
    return [
        {"run": run, **ends[0], "from": 1.0, "to": 1 + first, "change": first, "error": 0.1},
        {"run": run, **ends[1], "from": 1 + first, "to": 1 + first + second, "change": second, "error": 0.1},
    ]


def training(score, *intervals, run="a", p=1e-6):
    return [
        {
            "run": run, "score": score, "epoch": epoch, "rho": (low + high) / 2, "low": low, "high": high,
            "p": p if low * high > 0 else 0.5,
        }
        for epoch, (low, high) in enumerate(intervals)
    ]  # fmt: skip


def test_the_norm_must_grow_in_both_halves_and_its_correlation_have_both_signs():
    """Epoch 0 is the untrained network and counts in no correlation; one interval around 0 is no sign."""
    growing, resting, shrinking = norms(1, 1), norms(1, 0.1), norms(1, -1)
    mixed = training("norm", (0.1, 0.2), (-0.3, -0.1), (0.1, 0.3))
    steady = training("norm", (-0.3, -0.1), (-0.1, 0.2), (0.1, 0.3))
    found = [norm_is_inconsistent(n, t)["verdict"] for n in (growing, resting, shrinking) for t in (mixed, steady)]
    assert found == ["holds", "holds partly", "holds partly", "does not hold", "holds partly", "does not hold"]
    assert found[0] == "holds"
    both_runs = [*growing, *norms(1, -1, "b")]
    claim = norm_is_inconsistent(both_runs, mixed)
    assert "in 1 of 2 runs, shrinks in the second half in 1" in claim["evidence"] and claim["verdict"] == "holds partly"
    assert norm_is_inconsistent(both_runs, steady)["verdict"] == "does not hold", "neither of the two"
    # .23 is 2.3 errors: enough for one test and for two, not for the four of two runs.
    assert norm_is_inconsistent(norms(1, 0.23), mixed)["verdict"] == "holds"
    weak = norm_is_inconsistent([*norms(1, 0.23), *norms(1, 1, "b")], mixed)
    assert weak["evidence"].startswith("grows in both halves in 1 of 2 runs")


def test_signs_of_the_norms_correlation_are_tested_over_all_epochs():
    """Of 40 epochs without any correlation some are beyond 95 %: no sign. p must be below .05 / 40."""
    sides = [(0.01, 0.2), (-0.2, -0.01)] * 20
    for p, expected in ((0.002, "holds partly"), (0.001, "holds")):
        rows = training("norm", (0.1, 0.2), *sides, p=p)
        assert norm_is_inconsistent(norms(1, 1), rows)["verdict"] == expected


def test_a_training_of_two_epochs_has_no_two_halves_in_which_the_norm_could_grow():
    """Its first half would be from epoch 1 to epoch 1: no growth, which speaks neither for the claim nor against it."""
    mixed = training("norm", (0.1, 0.2), (-0.3, -0.1), (0.1, 0.3))
    short = norms(0, 1, "short", epochs=2)
    assert norm_is_inconsistent(short, mixed)["verdict"] == "not tested"
    claim = norm_is_inconsistent([*norms(1, 1), *short], mixed)
    assert claim["verdict"] == "holds" and "fewer than 3 epochs: short" in claim["evidence"]


def test_a_p_too_small_for_a_float_is_not_0():
    row = correlation("m", 0.5, 0.0, 1e-3)
    assert "m 0.400 (+0.500, p < 1e-300)" in stronger_than("confidence", [row])["evidence"]
    assert p_text(0.0123) == "0.01"


def test_holding_throughout_means_above_0_and_half_of_the_end_after_every_epoch():
    sure, unsure, weak = (0.1, 0.3), (-0.1, 0.5), (0.01, 0.1)
    assert holds_throughout(training("avh", unsure, sure, sure))["verdict"] == "holds"
    assert holds_throughout(training("avh", sure, unsure, sure))["verdict"] == "does not hold"
    assert holds_throughout(training("avh", sure, weak, sure))["verdict"] == "does not hold", ".055 is not half of .2"
    runs = [*training("avh", sure, sure), *training("avh", sure, weak, sure, run="b")]
    assert holds_throughout(runs)["verdict"] == "holds partly"
    turned = training("avh", sure, (-0.3, -0.1), sure, run="b")
    assert holds_throughout([*training("avh", sure, sure), *turned])["verdict"] == "does not hold", "one against it"
