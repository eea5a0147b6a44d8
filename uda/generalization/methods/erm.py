"""Empirical risk minimisation: the aggregate of all seen domains, by whatever loss the config names."""

from torch import Tensor

from uda.data.batch import Batch
from uda.generalization.methods.base import GENERALIZATION_METHODS, GeneralizationMethod


@GENERALIZATION_METHODS.register("erm")
class EmpiricalRiskMinimisation(GeneralizationMethod):
    """One loss over all seen domains together (the aggregate, DeepAll); `model.loss=avh` makes it the AVH loss."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.classification(self.network(batch.images).logits, batch), {}
