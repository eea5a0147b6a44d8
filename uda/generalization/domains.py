"""The domains of a run of domain generalisation: training images, held-out images and the unseen domain."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.core.registry import nearest
from uda.data.cards import load_card
from uda.data.domains import Source, Target, TargetLabels, load_labelled
from uda.data.features import without_views
from uda.generalization.config import GeneralizationConfig

#: First number of the seed of the draw of held-out images.
_HOLDOUT = 17


@dataclass(frozen=True)
class Seen:
    """A domain for training."""

    name: str
    domain: Source
    training: np.ndarray
    """Numbers of the training images, (n,) int64."""
    validation: np.ndarray
    """Numbers of the held-out images, (m,) int64."""


@dataclass(frozen=True)
class SeenAndUnseen:
    """The domains of a run. The labels of the unseen domain are used for measuring only."""

    seen: tuple[Seen, ...]
    name: str
    """Name of the unseen domain."""
    unseen: Target
    unseen_labels: TargetLabels
    classes: tuple[str, ...]


def names_of(config: GeneralizationConfig) -> list[str]:
    """All domains of a config.

    Raises:
        UserError: a domain is named twice, there are fewer than two domains, or the target is not a domain.
    """
    names = config.data.domains
    if names is None:
        names = list(load_card(config.data.dataset).domains)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"data.domains: {', '.join(twice)} is named twice; the unseen domain must not be trained on")
    if len(names) < 2:
        raise UserError(f"data.domains: there must be at least two domains, because one is left out; got {len(names)}")
    if config.target is not None and config.target not in names:
        same = [name for name in names if Path(name).name == config.target]
        hint = f", did you mean '{same[0]}'?" if same else nearest(config.target, names)
        raise UserError(f"target: '{config.target}' is not a domain{hint} (known: {', '.join(names)})")
    return names


def load(config: GeneralizationConfig, log: Callable[[str], None] = print, ranks: Ranks | None = None) -> SeenAndUnseen:
    """Load the domains of a config that has a target. Raises UserError, as `load_labelled` and `names_of` do."""
    names = names_of(config)
    loaded, classes = load_labelled(config.data, names, config.seed, log, ranks)
    loaded = [replace(domain, images=without_views(domain.images)) for domain in loaded]
    seen, unseen = [], None
    for place, (name, domain) in enumerate(zip(names, loaded, strict=True)):
        if name == config.target:
            unseen = domain
        else:  # the seed has the domain's place among all domains: the same images are held out for every target
            training, validation = hold_out(domain.labels, config.training.holdout, config.seed, place)
            if not len(validation):
                raise UserError(f"data: no class of {name} has two images, so none can be held out for validation")
            seen.append(Seen(name, domain, training, validation))
    return SeenAndUnseen(tuple(seen), config.target, Target(unseen.images), TargetLabels(unseen.labels), classes)


def hold_out(labels: np.ndarray, share: float, *seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training images and of the held-out images, both ascending.

    The held-out images are a random share of each class. A class with at least two images has at least one image in
    both parts. If a class has one image, it is not held out.
    """
    generator = np.random.default_rng((_HOLDOUT, *seed))
    held = []
    for label in np.unique(labels):
        own = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(own))), len(own) - 1)
        held.append(own[:count])
    validation = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), validation), validation
