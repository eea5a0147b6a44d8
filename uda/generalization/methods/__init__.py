"""The methods of domain generalisation. Each computes losses of a batch of several labelled domains."""

from uda.generalization.methods import erm, feature_critic, metareg, mldg  # noqa: F401  (they register themselves)
from uda.generalization.methods.base import GENERALIZATION_METHODS, GeneralizationMethod

__all__ = ["GENERALIZATION_METHODS", "GeneralizationMethod"]
