"""Maximum classifier discrepancy (MCD, Saito et al., CVPR 2018)."""

import copy
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.adaptation.settings import MethodSettings
from uda.core.settings import Settings
from uda.data.batch import Batch
from uda.models.network import Network
from uda.models.precision import full_precision
from uda.training.method import Optimizer


class Heads(NamedTuple):
    """Logits of both heads, (B, K) each."""

    first: Tensor
    second: Tensor


@ADAPTATION_METHODS.register("mcd")
class MaximumClassifierDiscrepancy(AdaptationMethod):
    """Two heads that disagree on target images far from the source, and a generator that brings them to agree.

    A head is what comes after the backbone, as `model.head` and `model.dropout` say. The authors' for VisDA-2017
    (mil-tokyo/MCD_DA) have two hidden layers of 1,000 (tllib: 1,024), with dropout before each of them and none before
    the last layer; here dropout is after each hidden layer, so the backbone's output is whole and x is not.

    A parameter has one momentum over all phases, as with the authors' two optimisers. The generator's has none there:
    `adaptation.optim.backbone_momentum=0`.
    """

    adapts = True
    further_heads = ("second",)

    class Options(Settings):
        """Settings of MCD."""

        generator_steps: int = Field(4, ge=1)
        """Updates of the generator in phase C."""
        weight: float = Field(1.0, ge=0)
        """Of the discrepancy beside the source's cross-entropy."""
        balance: float = Field(0.01, ge=0)
        """Of the class-balance term in phases A and B (the authors' for VisDA); 0: none."""

    def __init__(self, network: Network, settings: MethodSettings):
        super().__init__(network, settings)
        # G is the backbone, a head is all that comes after it. The network's own head is F1, and predicts.
        self.modules["second"] = _fresh_copy(nn.Sequential(network.head, network.dropout, network.classifier))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = self.network.parameter_groups()
        return {"backbone": groups["backbone"], "heads": [*groups["new"], *self.modules["second"].parameters()]}

    def step(self, batch: Batch, optimizer: Optimizer, progress: float) -> dict[str, Tensor]:
        # Phase A: generator and heads learn the source.
        features = self.generate(batch)
        source = self.source_losses(features, batch)
        optimizer.descend(source)

        # Phase B: the heads keep the source and disagree on the target. The generator stands still: no gradient.
        features = self.generate(batch)
        frozen = features.detach()
        away = self.source_losses(frozen, batch) - self.options.weight * self.discrepancy(frozen, batch)
        optimizer.descend(away, only="heads")

        # Phase C: the generator brings the heads to agree. Phase B's features are the first step's.
        for step in range(self.options.generator_steps):
            features = features if step == 0 else self.generate(batch)
            discrepancy = self.discrepancy(features, batch)
            optimizer.descend(self.options.weight * discrepancy, only="backbone")
        return {"loss": source.detach(), "loss/discrepancy": discrepancy.detach()}

    def generate(self, batch: Batch) -> Tensor:
        """G of all images of the batch, (B, width)."""
        return self.by_domain(self.network.backbone, batch)

    def heads(self, features: Tensor, batch: Batch) -> "Heads":
        """Logits of F1 and F2, fp32; both domains share BatchNorm's statistics as in the generator, or neither does."""
        return self.by_domain(self._heads, batch, features)

    def _heads(self, features: Tensor) -> "Heads":
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            return Heads(self.network.logits(self.network.head(features)), self.modules["second"](features))

    def source_losses(self, features: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of both heads on the source, and the class-balance term on the target."""
        total = features.new_zeros((), dtype=torch.float32)
        for logits in self.heads(features, batch):
            total = total + self.source_loss(logits, batch)
            if self.options.balance:
                total = total + self.options.balance * class_balance(batch.unannotated_rows.of(logits))
        return total

    def discrepancy(self, features: Tensor, batch: Batch) -> Tensor:
        """Of both heads on the target."""
        first, second = (batch.unannotated_rows.of(logits) for logits in self.heads(features, batch))
        return discrepancy(first, second)


@full_precision
def discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """Mean over images and classes of |p1 - p2|, from logits (B, K), a scalar in 0 to 2 / K."""
    return (first.softmax(1) - second.softmax(1)).abs().mean()


@full_precision
def class_balance(logits: Tensor) -> Tensor:
    """-mean_k log mean_i p_ik: smallest, log K, where every class is predicted equally often."""
    return -(logits.softmax(1).mean(0) + 1e-6).log().mean()


def _fresh_copy(module: nn.Module) -> nn.Module:
    """A copy with weights of its own, drawn anew; on the CPU, whose generator the run has seeded."""
    module = copy.deepcopy(module).cpu()
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module
