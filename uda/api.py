"""What `import uda` offers: runs from Python, and the parts of the method for your own training loop.

A run from Python equals the run of the command. It writes the same folder and resumes in the same way. With the same
config and number of threads, its results are the same bit for bit. A function returns tensors for tensors, and NumPy
arrays for NumPy arrays.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uda.adaptation.checks import unread_notes
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.selector_runs import adaptation_run
from uda.core.distributed import Ranks, start
from uda.core.errors import UserError
from uda.feature_bank import kind_of_bank
from uda.feature_bank import make_bank as write_bank
from uda.generalization.config import GeneralizationConfig
from uda.generalization.run import GeneralizationRun
from uda.generalization.summary import runs_of, write_summary
from uda.searches.search import Search, SearchResult
from uda.selection import angular, thresholds
from uda.selection.selectors import target_scores
from uda.trained_run import TrainedRun
from uda.training.config import RunConfig
from uda.training.engine import generators_restored
from uda.training.run_folder import RunLog, print_at_once
from uda.training.session import Session

C = TypeVar("C", bound=RunConfig)
Values = TypeVar("Values", Tensor, NDArray)
"""A tensor or a NumPy array. All values of a call have the same kind."""

Overrides = Mapping[str, Any] | Iterable[str]
"""Changes of a config: a mapping of dotted keys to values, or `key=value` words."""


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

    The run writes its folder, by default `runs/<config>/seed<seed>/`. Ctrl-C interrupts a run and raises
    KeyboardInterrupt. The same call resumes the run from its last checkpoint. If the run is finished, the call only
    opens it. Threads, memory allocator, TF32, signal handlers and the caller's random generators are not changed.

    Args:
        config: the name of a config, the path of a YAML file, or a config, such as another run's `config`.
        seed: the run's seed; None: the config's seed.
        overrides: changes of the config, `{"self_training.rounds": 3}` or `["self_training.rounds=3"]`.
        log: called with each line of progress; None: nothing is shown. `log.txt` in the run folder gets all lines.

    Raises:
        UserError: a mistake in the config, the paths or the data. The message says what to change.
    """
    overrides = overrides if isinstance(overrides, Mapping | str) else list(overrides)
    wanted = _config(config, AdaptationConfig, seed, overrides)
    with generators_restored(), start(wanted.runtime.device) as ranks:
        return _carry_out(adaptation_run, wanted, log, ranks, unread_notes(wanted, _changed(overrides)))


def generalize(
    config: str | Path | GeneralizationConfig,
    *,
    seed: int | None = None,
    overrides: Overrides = (),
    log: Callable[[str], None] | None = print_at_once,
) -> dict[str, TrainedRun]:
    """Train on all domains except one and test on that one, as `uda generalize` does.

        runs = uda.generalize("rotated_digits_erm", overrides={"target": "m30"})
        runs["m30"].results["final"]["overall"]

    Args and errors are the same as for `adapt`.

    Returns:
        The runs by the names of their unseen domains. The unseen domain is the config's `target`. Without a `target`,
        each domain is left out in turn.
    """
    wanted = _config(config, GeneralizationConfig, seed, overrides)
    with generators_restored(), start(wanted.runtime.device) as ranks:
        runs = {one.target: _carry_out(GeneralizationRun, one, log, ranks) for one in runs_of([wanted])}
        if ranks.is_main:
            write_summary([wanted], log or (lambda line: None))
    return runs


def search(
    config: str | Path | RunConfig,
    space: str | Path | Mapping[str, Any],
    trials: int = 20,
    *,
    validator: str | None = None,
    folder: str | Path | None = None,
    seed: int | None = None,
    overrides: Overrides = (),
    pruning: bool = True,
    log: Callable[[str], None] | None = print_at_once,
) -> SearchResult:
    """Search settings without target labels, as `uda search` does.

        found = uda.search("digits_avh", {"source.optim.lr": {"low": 1e-3, "high": 0.1, "log": True}}, trials=10)
        run = uda.adapt(found.best)

    The same call goes on with an interrupted search. If the search is finished, the call only reads it.

    Args:
        config: the name of a config, the path of a YAML file, or a config, such as another run's `config`.
        space: the name of a space, the path of a YAML file, or its content: dotted keys to lists or ranges.
        trials: number of trials. Trial 0 is the config as it is.
        validator: the label-free score that judges the last report of a trial; None: that of the config.
        folder: folder of the search; None: `search_seed<N>` beside the config's run folder.
        seed: seed of the search and of all its runs; None: the config's seed.
        overrides: changes of the config in all trials. A setting that is given is not searched.
        pruning: end trials early whose scores are low.
        log: called with each line of progress; None: nothing is shown.

    Raises:
        UserError: a mistake in the config, the space, the paths or the data. The message says what to change.
    """
    changes = _changes(overrides, seed)
    show = log or (lambda line: None)
    with generators_restored():
        return Search(config, space, trials, validator, folder, changes, pruning=pruning, log=show).run()


def make_bank(
    config: str | Path | RunConfig,
    folder: str | Path,
    *,
    views: int = 0,
    run: TrainedRun | None = None,
    overrides: Overrides = (),
    log: Callable[[str], None] | None = print_at_once,
) -> list[Path]:
    """Compute the features of every image of every domain once, as `uda bank` does.

        uda.make_bank("pacs_avh", "banks/pacs")
        uda.adapt("pacs_mcc", overrides={"data.features": "banks/pacs"})

    A domain whose file is there is not computed again. An interrupted call goes on where it stopped.

    Args:
        config: as for `adapt`, also a config of `uda generalize`. It names data, backbone and transforms.
        folder: the bank.
        views: number of augmented views of each image, for methods that compare views.
        run: take this run's network up to its classifier in place of the config's backbone.
        overrides: changes of the config, such as `{"model.backbone": "resnet50"}`.
        log: called with each line of progress; None: nothing is shown.

    Returns:
        The files, one per domain.

    Raises:
        UserError: the data or the network cannot be used, or a file of the bank is of other images or another network.
    """
    changes = _changes(overrides, None)
    # The config may name the bank that is to be made.
    changes = {**changes, "data.features": None} if isinstance(changes, Mapping) else [*changes, "data.features=null"]
    wanted = _config(config, kind_of_bank(config), None, changes)
    with generators_restored(), start(wanted.runtime.device) as ranks:
        return write_bank(wanted, folder, views=views, run=run, log=log, ranks=ranks)


def score(features: Values, logits: Values, weight: Values, selector: str = "avc") -> Values:
    """Scores of each class on each image, without a gradient: (N, D), (N, K), (K, D) -> (N, K).

    Args:
        features: input of the last linear layer.
        logits: output of the last linear layer. `avc` and `cosine` do not use it.
        weight: weight of the last linear layer.
        selector: a registered name: avc, softmax, margin, entropy, energy, cosine or your own.

    Returns:
        Scores; a higher score means more confidence. `avc` and `cosine` return float32, or float64 if an input is
        float64. All other selectors return float64. The scores are on the device of the inputs. MPS has no float64, so
        float64 scores of MPS tensors are on the CPU.

    Raises:
        UserError: the selector is unknown, or returns another shape.
        ValueError: the shapes do not match.
    """
    tensors = _tensors(features=features, logits=logits, weight=weight)
    return _like(features, target_scores(selector, *tensors))


@dataclass(frozen=True, eq=False)
class Selection:
    """Pseudo-labels of N images among K classes. The fields are tensors if the scores were a tensor, else arrays."""

    labels: Tensor | NDArray[np.int64]
    """(N,) int64, the class with the largest ratio of score to threshold, for all images."""
    selected: Tensor | NDArray[np.bool_]
    """(N,) bool, whether this ratio is at least 1."""
    thresholds: Tensor | NDArray[np.float64]
    """(K,) float64 (float32 on MPS), lambda. If it is infinite, no image of the class is selected."""
    scores: Tensor | NDArray[np.floating]
    """(N,), the score of each image's label."""
    ratios: Tensor | NDArray[np.float64]
    """(N,) float64 (float32 on MPS), the score of each image's label divided by the label's threshold."""


def select(scores: Tensor | NDArray, portion: float, labels: thresholds.LabelRule = "ratio") -> Selection:
    """Class-balanced pseudo-labels (CBST, Zou et al., ECCV 2018) from scores (N, K).

    The images with their largest score at class k are sorted by this score. The threshold lambda_k is the lowest score
    among the best `portion` of them. An image's label is the class with the largest ratio of score to threshold. An
    image is selected if this ratio is at least 1. With `labels="own"` its label is the class with the largest score,
    and it is selected if this score is at least the threshold of that class.

    Args:
        scores: a tensor on any device or an array, for example from `score`. The largest score of each row is above 0.
        portion: share of each class to select, 0 to 1.
        labels: the rule for labels, `ratio` or `own`.

    Raises:
        ValueError: a wrong shape or portion, or scores that cannot be used (the message names a row).
    """
    found = thresholds.select(scores, thresholds.class_balanced_thresholds(scores, portion), labels)
    fields = {name: getattr(found, name) for name in Selection.__dataclass_fields__}
    if isinstance(scores, Tensor):
        fields = {name: _on_device(torch.from_numpy(array), scores.device) for name, array in fields.items()}
    return Selection(**fields)


def avh(features: Values, weight: Values, labels: Values) -> Values:
    """Angular visual hardness (Chen et al., ICML 2020): (N, D), (K, D), (N,) class numbers -> (N,) in [0, 1].

    AVH is the angle between a feature and the weight of its class, divided by the sum of the feature's angles to all
    class weights. A high value means a hard image. Differentiable with respect to tensors. The result is float64 if
    `features` or `weight` is float64, else float32.

    Raises:
        ValueError: the shapes do not match, or a label is not a class number.
    """
    return _like(features, angular.avh(*_tensors(features=features, weight=weight, labels=labels)))


def avc(features: Values, weight: Values) -> Values:
    """Angular visual confidence (Chen et al., ICML 2020): (N, D), (K, D) -> (N, K), each row sums to 1.

    The score of a class is pi minus the angle to its weight, divided by the sum of this value over all classes. With
    many classes the scores are close to 1/K, so thresholds for softmax do not fit. Differentiable with respect to
    tensors. The result is float64 if an input is float64, else float32.

    Raises:
        ValueError: the shapes do not match.
    """
    return _like(features, angular.avc(*_tensors(features=features, weight=weight)))


def avh_loss(features: Values, weight: Values, labels: Values, scale: float = 10.0) -> Values:
    """The AVH loss for domain generalisation: softmax cross-entropy of -scale * angle, mean over the images.

    (N, D), (K, D) and class numbers (N,) or distributions (N, K) -> scalar. Differentiable with respect to tensors.
    The norms of features and weights do not change the loss.

    Args:
        features: input of the last linear layer.
        weight: weight of the last linear layer.
        labels: class numbers (integers), or distributions (floating).
        scale: inverse temperature, above 0.

    Raises:
        ValueError: the shapes do not match, or the scale is not above 0.
    """
    return _like(features, angular.avh_loss(*_tensors(features=features, weight=weight, labels=labels), scale))


def _config(config: str | Path | C, kind: type[C], seed: int | None, overrides: Overrides) -> C:
    if isinstance(config, RunConfig) and not isinstance(config, kind):
        raise TypeError(f"config: must be a {kind.__name__}, a name or a path; got a {type(config).__name__}")
    return kind.load(config, _changes(overrides, seed), origin="overrides")


def _changes(overrides: Overrides, seed: int | None) -> Overrides:
    """The overrides with the seed, if there is one."""
    if isinstance(overrides, Mapping):
        return {**overrides, **({} if seed is None else {"seed": seed})}
    words = [overrides] if isinstance(overrides, str) else list(overrides)
    return words + ([] if seed is None else [f"seed={seed}"])


def _changed(overrides: Overrides) -> list[str]:
    """The dotted keys of overrides."""
    if isinstance(overrides, Mapping):
        return [str(key) for key in overrides]
    words = [overrides] if isinstance(overrides, str) else overrides
    return [word.partition("=")[0] for word in words]


def _carry_out(
    run: Callable[[Any, RunLog, Ranks], Session],
    config: RunConfig,
    log: Callable[[str], None] | None,
    ranks: Ranks,
    notes: Iterable[str] = (),
) -> TrainedRun:
    """Carry a run out and open it. `notes` are logged first."""
    run_log = RunLog(silent=not ranks.is_main, show=log)
    for note in notes:
        run_log(note)
    session = None
    try:
        session = run(config, run_log, ranks)
        session.execute()
        ranks.maximum([0])  # the other processes wait here until rank 0 has written the results
    except UserError as error:
        run_log.note(f"error: {error}")
        raise
    except KeyboardInterrupt:
        run_log.note("interrupted; the same call resumes from the last checkpoint")
        raise
    finally:
        if session is not None:
            session.folder.release()
    return TrainedRun(config.folder, config)


def _tensors(**values: Tensor | NDArray) -> list[Tensor]:
    """The values as tensors. Arrays are copied only if they must be. Raises TypeError for a mixture."""
    are_tensors = [isinstance(value, Tensor) for value in values.values()]
    if all(are_tensors):
        return list(values.values())
    if any(are_tensors):
        raise TypeError(f"{', '.join(values)}: give tensors or NumPy arrays, not both")
    return [torch.from_numpy(np.require(value, requirements=["C", "W"])) for value in values.values()]


def _like(given: Tensor | NDArray, result: Tensor) -> Any:
    """The result as a tensor if a tensor was given, else as an array."""
    return result if isinstance(given, Tensor) else result.numpy()[()]


def _on_device(values: Tensor, device: torch.device) -> Tensor:
    if device.type == "mps" and values.dtype == torch.float64:
        values = values.float()
    return values.to(device)
