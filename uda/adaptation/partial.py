"""Partial targets (`data.label_sets`): which of the source's classes the target has.

Selection and validators use only these classes, as if the network had no others.
"""

from collections.abc import Sequence

import numpy as np

from uda.adaptation.config import AdaptationConfig
from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.data.class_names import closest, read_class_names, sample
from uda.evaluation.validators import log_softmax

#: A class counts as missing if its share of the predictions is below this part of the effective classes' mean share.
MISSING_BELOW = 0.2


def named_classes(config: AdaptationConfig, classes: Sequence[str]) -> np.ndarray | None:
    """Which classes `data.target_classes` names, bool (K,); None if it is not set.

    Raises UserError for a name that is no class of the source.
    """
    if config.data.target_classes is None:
        return None
    names = read_class_names(config.data.target_classes, "data.target_classes")
    for name in names:
        if name not in classes:
            hint = closest(name, classes) or f" (known: {sample(classes, 12)})"
            raise UserError(f"data.target_classes: '{name}' is not a class of the source{hint}")
    return np.isin(classes, names)


def occurring_classes(logits: np.ndarray, ranks: Ranks | None = None, certain: Sequence[int] = ()) -> np.ndarray:
    """Which classes a target seems to have, from its logits (N, K): bool (K,).

    Let q_k be the mean softmax probability of class k. The number of effective classes is exp(-sum_k q_k log q_k)
    (Hill, 1973). A class is missing if q_k is below a fifth of their mean share. The two classes with the largest q_k
    are never missing, because with a single class every prediction would be sure. PADA (Cao et al., ECCV 2018) uses the
    mean prediction as a sign of missing classes.

    Args:
        logits: (N, K) of this process's target images.
        ranks: the processes whose rows count together; None: only this one.
        certain: classes that occur for certain, because labelled target images have them.
    """
    mass = np.zeros(logits.shape[1])
    for _, log_p in log_softmax(logits):
        mass += np.exp(log_p).sum(0)
    mass = (ranks or Ranks()).sum(mass)
    share = mass / mass.sum()
    effective = np.exp(-(share * np.log(np.maximum(share, np.finfo(float).tiny))).sum())
    occurs = share * effective >= MISSING_BELOW
    occurs[[*np.argsort(-share, kind="stable")[:2], *certain]] = True
    return occurs


def missing_note(target_classes: np.ndarray, classes: Sequence[str]) -> str:
    """For the log: which classes a target seems to lack if the config does not name its classes."""
    missing = [name for name, has in zip(classes, target_classes, strict=True) if not has]
    if not missing:
        return "according to the predictions, the target has all classes"
    return (
        f"according to the predictions, the target lacks {len(missing)} of {len(classes)} classes "
        f"({sample(missing, 12)}). They get no pseudo-labels. If you know the target's classes, set "
        "data.target_classes=[...]"
    )
