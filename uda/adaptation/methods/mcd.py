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
    """Two heads learn to disagree on target images far from the source; the generator learns to make them agree.

    A head is everything after the backbone. `model.head` and `model.dropout` define it. The authors' heads for
    VisDA-2017 (mil-tokyo/MCD_DA) have two hidden layers of 1,000 units (tllib: 1,024), with dropout before each of them
    and none before the last layer. In this code dropout follows each hidden layer, so it acts on x and not on the
    backbone's output.

    A parameter has one momentum over all phases, as with the authors' two optimisers. Their optimiser of the generator
    has no momentum: use `adaptation.optim.backbone_momentum=0`.
    """

    adapts = True
    further_heads = ("second",)

    class Options(Settings):
        """Settings of MCD."""

        generator_steps: int = Field(4, ge=1)
        """Updates of the generator in phase C."""
        weight: float = Field(1.0, ge=0)
        """Weight of the discrepancy; the source cross-entropy has weight 1."""
        balance: float = Field(0.01, ge=0)
        """Weight of the class-balance term in phases A and B; 0: no term. The default is the authors' for VisDA."""

    def __init__(self, network: Network, settings: MethodSettings):
        super().__init__(network, settings)
        # The backbone is the paper's G. The network's own head is F1, which predicts.
        self.modules["second"] = _fresh_copy(nn.Sequential(network.head, network.dropout, network.classifier))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = self.network.parameter_groups()
        return {"backbone": groups["backbone"], "heads": [*groups["new"], *self.modules["second"].parameters()]}

    def step(self, batch: Batch, optimizer: Optimizer, progress: float) -> dict[str, Tensor]:
        # Phase A: generator and heads learn the source.
        features = self.generate(batch)
        source = self.source_losses(features, batch)
        optimizer.descend(source)

        # Phase B: the heads keep the source and learn to disagree on the target. The generator gets no gradient.
        features = self.generate(batch)
        frozen = features.detach()
        away = self.source_losses(frozen, batch) - self.options.weight * self.discrepancy(frozen, batch)
        optimizer.descend(away, only="heads")

        # Phase C: the generator makes the heads agree. Its first step reuses the features of phase B.
        for step in range(self.options.generator_steps):
            features = features if step == 0 else self.generate(batch)
            discrepancy = self.discrepancy(features, batch)
            optimizer.descend(self.options.weight * discrepancy, only="backbone")
        return {"loss": source.detach(), "loss/discrepancy": discrepancy.detach()}

    def generate(self, batch: Batch) -> Tensor:
        """Output of the generator for all images of the batch, (B, width)."""
        return self.by_domain(self.network.backbone, batch)

    def heads(self, features: Tensor, batch: Batch) -> "Heads":
        """Logits of F1 and F2, fp32. `adaptation.forward` decides whether the domains share BatchNorm statistics."""
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
        """Discrepancy of both heads on the target, a scalar."""
        first, second = (batch.unannotated_rows.of(logits) for logits in self.heads(features, batch))
        return discrepancy(first, second)


@full_precision
def discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """Mean over images and classes of |p1 - p2|, from logits (B, K), a scalar in 0 to 2 / K."""
    return (first.softmax(1) - second.softmax(1)).abs().mean()


@full_precision
def class_balance(logits: Tensor) -> Tensor:
    """-mean_k log mean_i p_ik. The minimum is log K, when every class is predicted equally often."""
    return -(logits.softmax(1).mean(0) + 1e-6).log().mean()


def _fresh_copy(module: nn.Module) -> nn.Module:
    """A copy with newly drawn weights. They are drawn on the CPU, whose generator the run has seeded."""
    module = copy.deepcopy(module).cpu()
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module
