"""Empirical risk minimisation: all seen domains together, with the loss of the config."""

from torch import Tensor

from uda.data.batch import Batch
from uda.generalization.methods.base import GENERALIZATION_METHODS, GeneralizationMethod


@GENERALIZATION_METHODS.register("erm")
class EmpiricalRiskMinimisation(GeneralizationMethod):
    """One loss over the images of all seen domains (DeepAll). `model.loss=avh` uses the AVH loss."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.classification(self.network(batch.images).logits, batch), {}
