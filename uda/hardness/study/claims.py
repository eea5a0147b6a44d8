"""The paper's claims about visual hardness, each held against what was measured by a rule that stands here.

Source: Chen et al., ICML 2020, section 4 and its discoveries 1 to 5. A case is a run, or a pair of runs. A claim holds
where every case bears it out; partly where at least half do, and more than speak against it; else it does not. A test
of a case is two-sided at 5 % over the claim's cases together (Bonferroni); where a rule says 95 %, it is of each case.
Tests draw images, not trainings: what another training of the same network would give, other seeds show.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import norm as normal

from uda.core.statistics import p_text

Rows = Sequence[Mapping[str, Any]]

LEVEL = 0.05
#: Runs of fewer epochs cannot show which of several curves comes to rest first.
LEAST_EPOCHS = 10
#: Nor have runs of fewer epochs two halves of a training.
LEAST_HALVES = 3
#: Per cent of the way that count as near the end, in the words of a plateau's evidence.
NEAR = 5
HOLDS, PARTLY, FAILS, UNTESTED = "holds", "holds partly", "does not hold", "not tested"


def verdict(bearing: int, against: int, of: int) -> str:
    """What so many cases of `of` say."""
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
    """1 or -1 where a mean differs from 0 by a test of so many cases, else 0."""
    reach = normal.ppf(1 - LEVEL / cases / 2) * error
    return 1 if mean > reach else -1 if mean < -reach else 0


def stronger_than(reference: str, correlations: Rows) -> dict[str, str]:
    """AVH's rho with people less that of `reference`; rows of `correlate`."""
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
        f"ahead in {len(ahead)} of {len(own)} models, behind in {len(behind)}. AVH's rho (less {reference}'s): {each}",
        "correlations_summary",
    )


def plateaus_first(plateaus: Rows) -> dict[str, str]:
    """Mean AVH comes to rest before mean loss and accuracy do; rows of `dynamics.plateau_rows`."""
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
        f"The plateau epoch of mean AVH is earlier than loss's and accuracy's, whichever of {near} % of a curve's way "
        "counts as near its end (95 %, bootstrap over images).",
        verdict(first, last, len(runs)),
        evidence,
        "plateau_epochs",
    )


def better_models(pairs: Rows) -> dict[str, str]:
    """Of two models the more accurate one has the lower AVH; rows of `dynamics.pair_rows`, the better one first."""
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
        "Of two runs whose accuracy differs the better one has the lower mean AVH (tests paired by image).",
        verdict(agreeing, against, len(told)),
        f"in {agreeing} of {len(told)} pairs, against it {against}; pairs that are equally accurate: "
        f"{len(pairs) - len(told)}{f'. Not in: {odd}' if odd else ''}",
        "models",
    )


def norm_is_inconsistent(norms: Rows, training: Rows) -> dict[str, str]:
    """The norm grows to the end, and its rho with people has both signs; rows of `norm_rows`, `correlation_rows`."""
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
        "image); and its rho with people is above 0 after some epochs and below 0 after others, of this run or "
        "another (5 % over all epochs of all runs). One of the two: partly.",
        found,
        f"grows in both halves in {growing} of {len(runs)} runs, shrinks in the second in {shrinking} (after the first "
        f"epoch, in the middle, at the end: {'; '.join(parts)}); rho {low:+.3f} to {high:+.3f}, above 0 after {above} "
        f"and below after {below} of {len(learning)} epochs of all runs"
        + (f". Left out of growing, fewer than {LEAST_HALVES} epochs: {', '.join(left_out)}" if left_out else ""),
        "norm_by_group",
    )


def holds_throughout(training: Rows) -> dict[str, str]:
    """AVH's rho with people is there after every epoch of every run; rows of `dynamics.correlation_rows`."""
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
        "After every epoch of a run rho is above 0 (95 %) and at least half of what it is in the end.",
        verdict(throughout, absent, len(runs)),
        f"in {throughout} of {len(runs)} runs; rho {low:.3f} to {high:.3f} over all epochs of all runs",
        "correlation_in_training",
    )
