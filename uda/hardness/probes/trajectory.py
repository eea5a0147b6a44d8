"""The path of an image from one class to another: AVH, angles, softmax and norm along an adversarial path.

Source: Angular Visual Hardness (Chen et al., ICML 2020), its discussion of adversarial examples.

AVH to class c is theta_c / sum_k theta_k. The AVHs to two classes have the same denominator, so they cross where the
angles cross. The prediction flips where the logits |w_c| |x| cos theta_c + b_c cross. The two places differ only
because of the lengths of the class weights and the biases.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from uda.core.errors import UserError
from uda.hardness.probes.image_paths import Paths, choose, find_class, follow
from uda.hardness.probes.pgd import Attack
from uda.hardness.probes.trajectory_figures import add_trajectory
from uda.hardness.scoring.classifier import LoadedClassifier
from uda.hardness.scoring.images import LabelledImages, in_order_of
from uda.report.findings import Findings, Row, write_rows
from uda.training.settings import RuntimeSettings


def event_rows(paths: Paths) -> list[Row]:
    """The steps of events, one row per image; None if an event does not happen.

    `leaves`: the first step at which the prediction is not the source class. `flips`: the first step at which the
    prediction is the target class. `avh_crosses`: the first step at which AVH to the target class is below AVH to the
    source class. `crossing_less_flip`: steps from the flip to the crossing, negative if AVH crosses first.
    """
    happened = {
        "leaves": paths.predicted != paths.source,
        "flips": paths.predicted == paths.target,
        "avh_crosses": paths.values["avh_to"] < paths.values["avh_from"],
    }
    rows = []
    for i, name in enumerate(paths.ids):
        first = {key: int(when[:, i].argmax()) if when[:, i].any() else None for key, when in happened.items()}
        both = None not in (first["flips"], first["avh_crosses"])
        apart = first["avh_crosses"] - first["flips"] if both else None
        rows.append({"image": name, **first, "crossing_less_flip": apart})
    return rows


def step_rows(paths: Paths) -> list[Row]:
    """Means over the images, one row per step. With several images, normal 95 % intervals (`_low`, `_high`) too.

    AVH is in units of 1 / K. `share_from` and `share_to`: shares of the images predicted as the source and as the
    target class.
    """
    scale = {name: len(paths.classes) if name.startswith("avh") else 1 for name in paths.values}
    count = len(paths.ids)
    rows = []
    for step, predicted in enumerate(paths.predicted):
        names, counts = np.unique(predicted, return_counts=True)
        row = {"step": step, "predicted": paths.classes[names[counts.argmax()]]}
        row |= {"share_from": float((predicted == paths.source).mean())}
        row |= {"share_to": float((predicted == paths.target).mean())}
        for name, values in paths.values.items():
            own = scale[name] * values[step]
            half = 1.96 * float(own.std(ddof=1)) / count**0.5 if count > 1 else 0.0
            row[name] = float(own.mean())
            if count > 1:
                row |= {f"{name}_low": row[name] - half, f"{name}_high": row[name] + half}
        rows.append(row)
    return rows


def aligned_rows(paths: Paths, events: Sequence[Row], reach: int = 10) -> list[Row]:
    """Mean AVH to both classes, in units of 1 / K, by the number of steps from each image's flip."""
    flips = np.array([-1 if row["flips"] is None else row["flips"] for row in events])
    rows = []
    for offset in range(-reach, reach + 1):
        steps = flips + offset
        there = np.flatnonzero((flips >= 0) & (steps >= 0) & (steps < len(paths.predicted)))
        if len(there):
            own = {
                name: paths.values[name][steps[there], there] * len(paths.classes) for name in ("avh_from", "avh_to")
            }
            rows.append({"from_flip": offset, "images": len(there), **{k: float(v.mean()) for k, v in own.items()}})
    return rows


def path_rows(paths: Paths) -> list[Row]:
    """All values, one row per image and step. AVH is not scaled."""
    return [
        {
            "image": name, "step": step, "predicted": paths.classes[paths.predicted[step, i]],
            **{key: float(values[step, i]) for key, values in paths.values.items()},
        }
        for i, name in enumerate(paths.ids)
        for step in range(len(paths.predicted))
    ]  # fmt: skip


def trajectory(
    classifier: LoadedClassifier,
    data: LabelledImages,
    findings: Findings,
    *,
    source: str,
    target: str,
    attack: Attack | None = None,
    image: str | None = None,
    count: int = 1,
    seed: int = 0,
    runtime: RuntimeSettings | None = None,
    log: Callable[[str], None] | None = print,
    name: str = "trajectory",
) -> dict[str, list[Row]]:
    """Move images of one class to another class, and add the results to the findings.

    Args:
        classifier: the classifier to attack.
        data: labelled images.
        findings: receives curves, frames and tables, with names `<name>_...`.
        source, target: names of the classes.
        attack: the attack; None: `Attack()`.
        image, count, seed: as in `choose`.
        runtime, log: as in `follow`.
        name: first part of the names of figures and tables.

    Returns:
        `steps`, `events`, `aligned`, `paths`: the rows of `step_rows`, `event_rows`, `aligned_rows` and `path_rows`.

    Raises:
        UserError: the classes are unknown or equal, no image of `source` is classified correctly, or `attack` has an
            invalid value.
    """
    data = in_order_of(classifier, data)
    numbers = [find_class(word, data.classes, option) for word, option in ((source, "`source`"), (target, "`target`"))]
    if source == target:
        raise UserError(f"`source` and `target` are both '{source}': name two classes")
    attack = attack or Attack()
    attack.settled(1)  # raises before anything is computed
    chosen = choose(classifier, data, numbers[0], count, image, seed, runtime, log)
    paths = follow(classifier, chosen, *numbers, attack, runtime, log)
    found = {"steps": step_rows(paths), "events": event_rows(paths), "paths": path_rows(paths)}
    found["aligned"] = aligned_rows(paths, found["events"])
    write_rows(findings.folder / f"{name}_paths.csv", found["paths"])
    add_trajectory(findings, paths, found, where_avh_crosses(found["events"]), name)
    return found


def where_avh_crosses(events: Sequence[Row]) -> str:
    """Sentences that compare the crossing of the AVHs with the flip of the prediction."""
    flips = [row["flips"] for row in events if row["flips"] is not None]
    if not flips:
        return "No image reaches the target class; increase eps or the number of steps."
    several = len(events) > 1
    text = f"The prediction flips at step {np.median(flips):g}"
    text += f" (median of the {len(flips)} of {len(events)} images that reach the target class). " if several else ". "
    apart = [row["crossing_less_flip"] for row in events if row["crossing_less_flip"] is not None]
    if not apart:
        return f"{text}AVH to the target class does not fall below AVH to the source class."
    if not several:
        return f"{text}AVH to the target class falls below AVH to the source class {_steps_from_flip(apart[0])}."
    sides = [sum(np.sign(apart) == side) for side in (-1, 0, 1)]
    middle = _steps_from_flip(float(np.median(apart)))
    return (
        f"{text}AVH to the target class falls below AVH to the source class {middle} (median; from {min(apart):+d} to "
        f"{max(apart):+d}): earlier in {sides[0]}, at the same step in {sides[1]}, later in {sides[2]}."
    )


def _steps_from_flip(steps: float) -> str:
    if steps == 0:
        return "at the same step"
    return f"{abs(steps):g} step{'s' * (abs(steps) != 1)} {'earlier' if steps < 0 else 'later'}"


def summary(found: Mapping[str, Sequence[Row]]) -> list[str]:
    """The main numbers of `trajectory`'s result, in lines."""
    first, last = found["steps"][0], found["steps"][-1]
    names = {"avh": "AVH / (1/K)", "angle": "angle, radians", "p": "softmax"}
    moved = f"moved by {last['l2']:.3g} (l2), {last['linf']:.3g} (linf)"
    lines = [f"step 0 > step {last['step']}, mean of {len(found['events'])}; {moved}"]
    for key, title in names.items():
        cells = [f"{end} {first[f'{key}_{end}']:.3f} > {last[f'{key}_{end}']:.3f}" for end in ("from", "to")]
        lines.append(f"  {title:<15} {'   '.join(cells)}")
    lines.append(f"  {'norm |x|':<15} {first['norm']:.3f} > {last['norm']:.3f}")
    return [*lines, where_avh_crosses(found["events"])]
