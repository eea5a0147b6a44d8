"""What `import uda` offers: runs from Python, and the pieces of the method for a training loop of your own.

A run from Python is the run that the command does: the same folder, the same results bit for bit with the same config
on the same threads, and the same way to go on. Tensors and NumPy arrays come back in the kind that came in.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.core.distributed import Ranks, start
from uda.core.errors import UserError
from uda.generalization.config import GeneralizationConfig
from uda.generalization.run import GeneralizationRun
from uda.generalization.summary import runs_of, write_summary
from uda.selection import angular, thresholds
from uda.selection.selectors import target_scores
from uda.trained_run import TrainedRun
from uda.training.config import RunConfig
from uda.training.engine import generators_restored
from uda.training.run_folder import RunLog, print_at_once
from uda.training.session import Session

C = TypeVar("C", bound=RunConfig)
Values = TypeVar("Values", Tensor, NDArray)
"""A tensor or a NumPy array; all values of a call are of the same kind."""

Overrides = Mapping[str, Any] | Iterable[str]
"""Changes of a config: dotted keys with their values, or `key=value` words."""


def adapt(
    config: str | Path | AdaptationConfig,
    *,
    seed: int | None = None,
    overrides: Overrides = (),
    log: Callable[[str], None] | None = print_at_once,
) -> TrainedRun:
    """Adapt a model from labelled source images to unlabelled target images, as `uda adapt` does.

        run = uda.adapt("digits_avh", seed=1, overrides={"self_training.rounds": 3})
        run.results["final"]["class_mean"]

    The run writes its folder, by default `runs/<config>/seed<seed>/`. A call that was interrupted (Ctrl-C raises
    KeyboardInterrupt) goes on from its last checkpoint when it is made again. A finished run is opened at once.
    Threads, memory allocator, TF32, signal handlers and the caller's random generators stay as they are.

    Args:
        config: the name of a config, the path of a YAML file, or a config, such as another run's `config`.
        seed: seed of everything random; None: the config's.
        overrides: changes of the config, `{"self_training.rounds": 3}` or `["self_training.rounds=3"]`.
        log: shows one line of the run's progress; None shows nothing. The run's `log.txt` gets all lines.

    Raises:
        UserError: a mistake in the config, the paths or the data. The message says what to change.
    """
    wanted = _config(config, AdaptationConfig, seed, overrides)
    with generators_restored(), start(wanted.runtime.device) as ranks:
        return _carry_out(AdaptationRun, wanted, log, ranks)


def generalize(
    config: str | Path | GeneralizationConfig,
    *,
    seed: int | None = None,
    overrides: Overrides = (),
    log: Callable[[str], None] | None = print_at_once,
) -> dict[str, TrainedRun]:
    """Train on all domains but one and test on that one, as `uda generalize` does.

        runs = uda.generalize("rotated_digits_erm", overrides={"target": "30"})
        runs["30"].results["final"]["overall"]

    Args and errors are those of `adapt`.

    Returns:
        The run of each unseen domain by its name: of the config's `target`, or of each domain in turn.
    """
    wanted = _config(config, GeneralizationConfig, seed, overrides)
    with generators_restored(), start(wanted.runtime.device) as ranks:
        runs = {one.target: _carry_out(GeneralizationRun, one, log, ranks) for one in runs_of([wanted])}
        if ranks.is_main:
            write_summary([wanted], log or (lambda line: None))
    return runs


def score(features: Values, logits: Values, weight: Values, selector: str = "avc") -> Values:
    """How sure a model is of each class on each image, without a gradient: (N, D), (N, K), (K, D) -> (N, K).

    Args:
        features: input of the last linear layer.
        logits: its output; `avc` and `cosine` do not look at it.
        weight: the layer's weight.
        selector: a registered name: avc, softmax, margin, entropy, energy, cosine or one of your own.

    Returns:
        Scores, higher is surer. `avc` and `cosine` give float32 (float64 where an input is float64), all others
        float64, on the device of the inputs; MPS has no float64, so those of its tensors come on the CPU.

    Raises:
        UserError: an unknown selector, or one that gives another shape.
        ValueError: shapes that do not match.
    """
    tensors = _tensors(features=features, logits=logits, weight=weight)
    return _like(features, target_scores(selector, *tensors))


@dataclass(frozen=True, eq=False)
class Selection:
    """Pseudo-labels of N images among K classes; tensors or NumPy arrays, as the scores were."""

    labels: Tensor | NDArray[np.int64]
    """(N,) int64, the class of the largest ratio of score and threshold, for all images."""
    selected: Tensor | NDArray[np.bool_]
    """(N,) bool, whether that ratio reaches 1."""
    thresholds: Tensor | NDArray[np.float64]
    """(K,) float64 (float32 on MPS), lambda; infinite for a class that nothing may be labelled with."""
    scores: Tensor | NDArray[np.floating]
    """(N,), the score of each image's label."""
    ratios: Tensor | NDArray[np.float64]
    """(N,) float64 (float32 on MPS), that score over the label's threshold."""


def select(scores: Tensor | NDArray, portion: float) -> Selection:
    """Class-balanced pseudo-labels (CBST, Zou et al., ECCV 2018) from scores (N, K).

    Of the images with their largest score at class k, the best `portion` reach the threshold lambda_k. An image gets
    the class of its largest ratio of score and threshold. It is selected where that ratio reaches 1.

    Args:
        scores: a tensor on any device or an array, such as `score` gives; the largest of each row is above 0.
        portion: share of each class to select, 0 to 1.

    Raises:
        ValueError: another shape or portion, or scores that cannot be used (the message names a row).
    """
    found = thresholds.select(scores, thresholds.class_balanced_thresholds(scores, portion))
    fields = {name: getattr(found, name) for name in Selection.__dataclass_fields__}
    if isinstance(scores, Tensor):
        fields = {name: _on_device(torch.from_numpy(array), scores.device) for name, array in fields.items()}
    return Selection(**fields)


def avh(features: Values, weight: Values, labels: Values) -> Values:
    """Angular visual hardness (Chen et al., ICML 2020): (N, D), (K, D), (N,) class numbers -> (N,) in [0, 1].

    The angle between a feature and the weight of its class, over the sum of its angles to all class weights. High is
    hard. Differentiable with respect to tensors. float32, or float64 where `features` or `weight` is.

    Raises:
        ValueError: shapes that do not match, or a label that is no class.
    """
    return _like(features, angular.avh(*_tensors(features=features, weight=weight, labels=labels)))


def avc(features: Values, weight: Values) -> Values:
    """Angular visual confidence (Chen et al., ICML 2020): (N, D), (K, D) -> (N, K), each row sums to 1.

    The share of each class in all pi - angle. With many classes the scores lie close to 1/K, so thresholds made for
    softmax do not fit. Differentiable with respect to tensors. float32, or float64 where an input is.

    Raises:
        ValueError: shapes that do not match.
    """
    return _like(features, angular.avc(*_tensors(features=features, weight=weight)))


def avh_loss(features: Values, weight: Values, labels: Values, scale: float = 10.0) -> Values:
    """The AVH loss for domain generalisation: softmax cross-entropy of -scale * angle, mean over the images.

    (N, D), (K, D) and class numbers (N,) or distributions (N, K) -> scalar. Differentiable with respect to tensors.
    Norms of features and weights play no part.

    Args:
        features: input of the last linear layer.
        weight: the layer's weight.
        labels: integers, or floating distributions.
        scale: inverse temperature, above 0.

    Raises:
        ValueError: shapes that do not match, or a scale that is not above 0.
    """
    return _like(features, angular.avh_loss(*_tensors(features=features, weight=weight, labels=labels), scale))


def _config(config: str | Path | C, kind: type[C], seed: int | None, overrides: Overrides) -> C:
    if isinstance(config, RunConfig) and not isinstance(config, kind):
        raise TypeError(f"config: needs a {kind.__name__}, a name or a path; got a {type(config).__name__}")
    if isinstance(overrides, Mapping):
        changes = {**overrides, **({} if seed is None else {"seed": seed})}
    else:
        words = [overrides] if isinstance(overrides, str) else list(overrides)
        changes = words + ([] if seed is None else [f"seed={seed}"])
    return kind.load(config, changes, origin="overrides")


def _carry_out(
    session_type: type[Session], config: RunConfig, log: Callable[[str], None] | None, ranks: Ranks
) -> TrainedRun:
    """Bring one run to its end, and open it."""
    run_log = RunLog(silent=not ranks.is_main, show=log)
    session = None
    try:
        session = session_type(config, run_log, ranks)
        session.execute()
        ranks.maximum([0])  # rank 0 has written the results when the others go on
    except UserError as error:
        run_log.note(f"error: {error}")
        raise
    except KeyboardInterrupt:
        run_log.note("interrupted; the same call goes on from the last checkpoint")
        raise
    finally:
        if session is not None:
            session.folder.release()
    return TrainedRun(config.folder, config)


def _tensors(**values: Tensor | NDArray) -> list[Tensor]:
    """The values as tensors; arrays are not copied where that can be. Raises TypeError for a mixture."""
    are_tensors = [isinstance(value, Tensor) for value in values.values()]
    if all(are_tensors):
        return list(values.values())
    if any(are_tensors):
        raise TypeError(f"{', '.join(values)}: give tensors or NumPy arrays, not both")
    return [torch.from_numpy(np.require(value, requirements=["C", "W"])) for value in values.values()]


def _like(given: Tensor | NDArray, result: Tensor) -> Any:
    """A result in the kind of what was given."""
    return result if isinstance(given, Tensor) else result.numpy()[()]


def _on_device(values: Tensor, device: torch.device) -> Tensor:
    if device.type == "mps" and values.dtype == torch.float64:
        values = values.float()
    return values.to(device)
