"""The paper's claims about visual hardness. This module has the rules by which the results are checked.

Source: Chen et al., ICML 2020, section 4 and its discoveries 1 to 5. A case is a run, or a pair of runs. A claim holds
if every case agrees with it. It holds partly if at least half of the cases agree and more agree than disagree.
Otherwise it does not hold. Tests are two-sided at 5 % over all cases of a claim (Bonferroni). If a rule says 95 %, the
interval is that of each case. Tests resample images, not trainings. Other seeds show the effect of another training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import norm as normal

from uda.core.statistics import p_text

Rows = Sequence[Mapping[str, Any]]

LEVEL = 0.05
#: Runs with fewer epochs cannot show which curve plateaus first.
LEAST_EPOCHS = 10
#: Runs with fewer epochs do not have two halves of a training.
LEAST_HALVES = 3
#: The share of a curve's change, in per cent, whose plateau epochs are in the evidence.
NEAR = 5
HOLDS, PARTLY, FAILS, UNTESTED = "holds", "holds partly", "does not hold", "not tested"


def verdict(bearing: int, against: int, of: int) -> str:
    """The verdict from the numbers of cases that agree, that disagree, and of all cases."""
    if not of:
        return UNTESTED
    if bearing == of:
        return HOLDS
    return PARTLY if 2 * bearing >= of and bearing > against else FAILS


def _claim(text: str, rule: str, found: str, evidence: str, figure: str) -> dict[str, str]:
    return {"claim": text, "verdict": found, "rule": rule, "evidence": evidence, "figure": figure}


def _of(rows: Rows, **wanted: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["run"] for row in rows))


def _sign(mean: float, error: float, cases: int) -> int:
    """The sign of a mean that differs from 0 in a test over all `cases`, else 0."""
    reach = normal.ppf(1 - LEVEL / cases / 2) * error
    return 1 if mean > reach else -1 if mean < -reach else 0


def stronger_than(reference: str, correlations: Rows) -> dict[str, str]:
    """AVH's rho with people minus that of `reference`, from the rows of `correlate`."""
    own = _of(correlations, score="avh")
    level = LEVEL / len(own)
    sure = [row for row in own if max(row["meng_p"], row["difference_p"]) < level]
    ahead = [row for row in sure if row["difference"] > 0]
    behind = [row for row in sure if row["difference"] < 0]
    each = "; ".join(
        f"{row['model']} {row['rho']:.3f} ({row['difference']:+.3f}, p {p_text(row['meng_p'])})" for row in own
    )
    return _claim(
        f"AVH correlates with human frequency more strongly than {reference} does",
        "A model's rho of AVH is larger by the test of Meng, Rosenthal and Rubin and by the paired bootstrap.",
        verdict(len(ahead), len(behind), len(own)),
        f"ahead in {len(ahead)} of {len(own)} models, behind in {len(behind)}. AVH's rho (minus {reference}'s): {each}",
        "correlations_summary",
    )


def plateaus_first(plateaus: Rows) -> dict[str, str]:
    """Mean AVH plateaus before mean loss and accuracy do, from the rows of `dynamics.plateau_rows`."""
    runs = [run for run in _names(plateaus) if _of(plateaus, run=run)[0]["epochs"] >= LEAST_EPOCHS]
    left_out = [run for run in _names(plateaus) if run not in runs]
    first = last = 0
    parts = []
    for run in runs:
        own = _of(plateaus, run=run)
        others = [row for row in own if row["quantity"] in ("loss", "accuracy")]
        first += all(row["after AVH, low"] > 0 for row in others)
        last += all(row["after AVH, high"] < 0 for row in others)
        found = {row["quantity"]: f"{row['plateau epoch']:.1f}" for row in _of(own, **{"near, %": NEAR})}
        parts.append(f"{run}: AVH {found['avh']}, loss {found['loss']}, accuracy {found['accuracy']}")
    near = ", ".join(f"{share:g}" for share in dict.fromkeys(row["near, %"] for row in plateaus))
    evidence = f"before both in {first} of {len(runs)} runs, after both in {last}"
    if runs:
        evidence += f". Plateau epochs at {NEAR:g} %: {'; '.join(parts)}"
    if left_out:
        evidence += f". Left out, fewer than {LEAST_EPOCHS} epochs: {', '.join(left_out)}"
    return _claim(
        "AVH plateaus before loss and accuracy do",
        "The plateau epoch of mean AVH is earlier than those of loss and accuracy, for each of "
        f"{near} % of a curve's change as the distance near its end (95 %, bootstrap over images).",
        verdict(first, last, len(runs)),
        evidence,
        "plateau_epochs",
    )


def better_models(pairs: Rows) -> dict[str, str]:
    """The more accurate of two models has the lower AVH, from the rows of `dynamics.pair_rows`."""
    told = [row for row in pairs if _sign(row["accuracy"], row["accuracy_error"], len(pairs)) > 0]
    signs = [_sign(row["avh"], row["avh_error"], len(pairs)) for row in told]
    agreeing, against = signs.count(-1), signs.count(1)
    odd = "; ".join(
        f"{row['better']} over {row['run']}: {row['accuracy']:+.1f} %, AVH {row['avh']:+.3f} / K"
        for row, sign in zip(told, signs, strict=True)
        if sign >= 0
    )
    return _claim(
        "Better models end with better AVH",
        "If the accuracy of two runs differs, the better run has the lower mean AVH (tests paired by image).",
        verdict(agreeing, against, len(told)),
        f"in {agreeing} of {len(told)} pairs, the opposite in {against}; pairs with equal accuracy: "
        f"{len(pairs) - len(told)}{f'. Not in: {odd}' if odd else ''}",
        "models",
    )


def norm_is_inconsistent(norms: Rows, training: Rows) -> dict[str, str]:
    """The norm grows to the end, and its rho with people has both signs.

    Uses the rows of `norm_rows` and `correlation_rows`.
    """
    runs = [run for run in _names(norms) if _of(norms, run=run)[-1]["last"] >= LEAST_HALVES]
    left_out = [run for run in _names(norms) if run not in runs]
    growing = shrinking = 0
    parts = []
    for run in runs:
        halves = _of(norms, run=run)
        signs = [_sign(row["change"], row["error"], 2 * len(runs)) for row in halves]
        growing += signs == [1, 1]
        shrinking += signs[-1] == -1
        parts.append(f"{run} {halves[0]['from']:.2f}, {halves[1]['from']:.2f}, {halves[1]['to']:.2f}")
    learning = [row for row in _of(training, score="norm") if row["epoch"]]
    sure = [row for row in learning if row["p"] < LEVEL / len(learning)]
    above, below = (sum(row["rho"] * sign > 0 for row in sure) for sign in (1, -1))
    grows = verdict(growing, shrinking, len(runs))
    both = [grows == HOLDS, above > 0 and below > 0]
    found = UNTESTED if grows == UNTESTED else HOLDS if all(both) else PARTLY if any(both) else FAILS
    low, high = (pick(row["rho"] for row in learning) for pick in (min, max))
    return _claim(
        "The norm keeps growing and its correlation is inconsistent",
        "The mean norm of every run grows from the first epoch to the middle and from there to the end (paired by "
        "image). Its rho with people is above 0 after some epochs and below 0 after others, in the same run or in "
        "different runs (5 % over all epochs of all runs). If one of the two is true: partly.",
        found,
        f"grows in both halves in {growing} of {len(runs)} runs, shrinks in the second half in {shrinking} (after the "
        f"first epoch, in the middle, at the end: {'; '.join(parts)}); rho {low:+.3f} to {high:+.3f}, above 0 after "
        f"{above} and below 0 after {below} of {len(learning)} epochs of all runs"
        + (f". Growth left out, fewer than {LEAST_HALVES} epochs: {', '.join(left_out)}" if left_out else ""),
        "norm_by_group",
    )


def holds_throughout(training: Rows) -> dict[str, str]:
    """AVH's rho with people holds after every epoch of every run, from the rows of `dynamics.correlation_rows`."""
    learning = [row for row in _of(training, score="avh") if row["epoch"]]
    runs = _names(learning)
    throughout = 0
    for run in runs:
        own = _of(learning, run=run)
        throughout += all(row["low"] > 0 and row["rho"] >= own[-1]["rho"] / 2 for row in own)
    absent = sum(any(row["high"] < 0 for row in _of(learning, run=run)) for run in runs)
    low, high = (pick(row["rho"] for row in learning) for pick in (min, max))
    return _claim(
        "AVH's correlation holds across models and through training",
        "After every epoch of a run, rho is above 0 (95 %) and at least half of its final value.",
        verdict(throughout, absent, len(runs)),
        f"in {throughout} of {len(runs)} runs; rho {low:.3f} to {high:.3f} over all epochs of all runs",
        "correlation_in_training",
    )
