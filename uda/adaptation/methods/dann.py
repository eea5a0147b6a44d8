"""Domain-adversarial training (DANN, Ganin et al., JMLR 2016): features that do not reveal the domain."""

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.adaptation.settings import MethodSettings
from uda.core.settings import Settings
from uda.data.batch import Batch
from uda.models.network import Network


@ADAPTATION_METHODS.register("dann")
class DomainAdversarial(AdaptationMethod):
    """Cross-entropy on the source, and a domain classifier whose gradient is reversed before the features."""

    adapts = True
    compares_two = True

    class Options(Settings):
        """Settings of DANN."""

        weight: float = Field(1.0, ge=0)
        """Weight of the domain loss; the source cross-entropy has weight 1."""
        hidden: int = Field(1024, ge=1)
        """Width of the domain classifier's two hidden layers."""
        steepness: float = Field(10.0, gt=0)
        """How fast the gradient reversal grows: its factor is 2 / (1 + exp(-steepness * p)) - 1, with p the share of
        the run that is done."""

    def __init__(self, network: Network, settings: MethodSettings):
        super().__init__(network, settings)
        width = network.weight.shape[1]
        self.modules["domain"] = domain_classifier(width, self.options.hidden)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        features, logits = self.forward(batch)
        source = self.source_loss(logits, batch)
        strength = warm_up(self.progress, self.options.steepness)
        domain = domain_loss(self.modules["domain"], reverse_gradient(features, strength), batch)
        scalars = {"loss/source": source.detach(), "loss/domain": domain.detach()}
        return source + self.options.weight * domain, scalars


def domain_classifier(width: int, hidden: int) -> nn.Module:
    """Network from features (B, width) to the target domain's logit (B, 1); two hidden layers with BatchNorm."""
    layers = [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
    layers += [nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, 1))


def domain_loss(classifier: nn.Module, features: Tensor, batch: Batch, weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of the domain: the mean over source and target of their means, weighted by `weight` (B,)."""
    logits = classifier(features).squeeze(1).float()
    each = binary_cross_entropy_with_logits(logits, batch.is_target.float(), reduction="none")
    weight = torch.ones_like(each) if weight is None else weight
    parts = [
        (rows.of(each) * rows.of(weight)).sum() / rows.of(weight).sum()
        for rows in (batch.source_rows, batch.target_rows)
    ]
    return (parts[0] + parts[1]) / 2


def warm_up(progress: float, steepness: float = 10.0) -> float:
    """Factor of the gradient reversal, 0 to 1; `progress`: share of the run that is done."""
    return 2 / (1 + math.exp(-steepness * progress)) - 1


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reverse_gradient(features: Tensor, strength: float) -> Tensor:
    """Return `features` unchanged; the backward pass multiplies their gradient by -strength."""
    return _ReverseGradient.apply(features, strength)
