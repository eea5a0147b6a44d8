"""The domains of a run that leaves one out: what is trained on, what is held out of it, what is never seen."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.core.registry import nearest
from uda.data.cards import load_card
from uda.data.domains import Source, Target, TargetLabels, load_labelled
from uda.generalization.config import GeneralizationConfig

#: First number of the seed by which images are held out.
_HOLDOUT = 17


@dataclass(frozen=True)
class Seen:
    """A domain that is trained on."""

    name: str
    domain: Source
    training: np.ndarray
    """Numbers of the images that are trained on, (n,) int64."""
    validation: np.ndarray
    """Numbers of those that are held out, (m,) int64."""


@dataclass(frozen=True)
class SeenAndUnseen:
    """What a run works on. The unseen domain's labels are for measuring alone."""

    seen: tuple[Seen, ...]
    name: str
    """The unseen domain's."""
    unseen: Target
    unseen_labels: TargetLabels
    classes: tuple[str, ...]


def names_of(config: GeneralizationConfig) -> list[str]:
    """All domains of a config.

    Raises:
        UserError: a domain stands twice, there are fewer than two, or the target is none of them.
    """
    names = config.data.domains
    if names is None:
        names = list(load_card(config.data.dataset).domains)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"data.domains: {', '.join(twice)} stands twice, so what is left out would be trained on too")
    if len(names) < 2:
        raise UserError(f"data.domains: {len(names)} given; one is left out, so there must be two at least")
    if config.target is not None and config.target not in names:
        same = [name for name in names if Path(name).name == config.target]
        hint = f", did you mean '{same[0]}'?" if same else nearest(config.target, names)
        raise UserError(f"target: '{config.target}' is none of the domains{hint} ({', '.join(names)})")
    return names


def load(config: GeneralizationConfig, log: Callable[[str], None] = print, ranks: Ranks | None = None) -> SeenAndUnseen:
    """The domains of a config that names its target. Raises UserError, as `load_labelled` and `names_of` do."""
    names = names_of(config)
    loaded, classes = load_labelled(config.data, names, config.seed, log, ranks)
    seen, unseen = [], None
    for place, (name, domain) in enumerate(zip(names, loaded, strict=True)):
        if name == config.target:
            unseen = domain
        else:  # by its place among all domains: the same images are held out whichever domain is unseen
            training, validation = hold_out(domain.labels, config.training.holdout, config.seed, place)
            if not len(validation):
                raise UserError(f"data: no class of {name} has two images, so none can be held out for validation")
            seen.append(Seen(name, domain, training, validation))
    return SeenAndUnseen(tuple(seen), config.target, Target(unseen.images), TargetLabels(unseen.labels), classes)


def hold_out(labels: np.ndarray, share: float, *seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to train on and of those held out, each ascending: a share of every class, at random.

    A class of two images or more leaves one at least on either side; of a class with one image none is held out.
    """
    generator = np.random.default_rng((_HOLDOUT, *seed))
    held = []
    for label in np.unique(labels):
        own = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(own))), len(own) - 1)
        held.append(own[:count])
    validation = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), validation), validation
