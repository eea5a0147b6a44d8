"""uda: unsupervised domain adaptation by self-training.

    import uda

    run = uda.adapt("digits_avh", overrides={"self_training.rounds": 3})
    run.results["final"]["class_mean"]

`import uda` is light: torch is imported when a function is first used.
"""

from typing import TYPE_CHECKING, Any

from uda.core.errors import UserError
from uda.core.version import __version__

if TYPE_CHECKING:
    from uda.api import Selection, adapt, avc, avh, avh_loss, generalize, make_bank, score, search, select
    from uda.trained_run import ImagePredictions, TrainedRun, load_run

__all__ = [
    "ImagePredictions",
    "Selection",
    "TrainedRun",
    "UserError",
    "__version__",
    "adapt",
    "avc",
    "avh",
    "avh_loss",
    "generalize",
    "load_run",
    "make_bank",
    "score",
    "search",
    "select",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'uda' has no attribute '{name}'")
    from uda import api, trained_run

    return getattr(trained_run if name in ("ImagePredictions", "TrainedRun", "load_run") else api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
