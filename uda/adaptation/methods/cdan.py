"""Conditional adversarial adaptation (CDAN, Long et al., NeurIPS 2018): DANN on features times predictions."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.adaptation.methods.dann import DomainAdversarial, domain_classifier, domain_loss, reverse_gradient, warm_up
from uda.adaptation.settings import MethodSettings
from uda.data.batch import Batch
from uda.models.network import Network
from uda.models.precision import full_precision

#: Most entries of the outer product (features x classes). Above this `auto` takes the random map.
MOST_PRODUCTS = 4096


@ADAPTATION_METHODS.register("cdan")
class ConditionalAdversarial(AdaptationMethod):
    """DANN with a domain classifier on the outer product of features and predictions (CDAN; `entropy`: CDAN+E)."""

    adapts = True
    compares_two = True

    class Options(DomainAdversarial.Options):
        """Settings of CDAN: those of DANN, and its own."""

        entropy: bool = True
        """Weight each image by 1 + exp(-entropy of its prediction). No gradient flows through the weight."""
        joint: Literal["auto", "outer", "random"] = "auto"
        """Input of the domain classifier: the `outer` product of features and predictions, or a `random` map of it.
        `auto` is the paper's rule: the product if it has at most 4096 entries, else the map. The log names the map."""
        random_width: int = Field(1024, ge=1)
        """Width of the random map."""

    def __init__(self, network: Network, settings: MethodSettings):
        super().__init__(network, settings)
        classes, width = network.weight.shape
        outer = self.options.joint == "outer"
        if self.options.joint == "auto":
            outer = classes * width <= MOST_PRODUCTS
            if not outer:
                self.note = (
                    f"method 'cdan': a random map of width {self.options.random_width} replaces the outer product, "
                    f"because {width} features x {classes} classes are more than {MOST_PRODUCTS}. "
                    "method_options.joint=outer uses the product in any case"
                )
        joint = classes * width if outer else self.options.random_width
        self.modules["joint"] = _OuterProduct() if outer else _RandomMap(width, classes, joint)
        self.modules["domain"] = domain_classifier(joint, self.options.hidden)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        features, logits = self.forward(batch)
        source = self.source_loss(logits, batch)
        p = logits.detach().softmax(1)
        joint = self.modules["joint"](features, p)
        weight = 1 + torch.exp(-torch.special.entr(p).sum(1)) if self.options.entropy else None
        strength = warm_up(self.progress, self.options.steepness)
        domain = domain_loss(self.modules["domain"], reverse_gradient(joint, strength), batch, weight)
        scalars = {"loss/source": source.detach(), "loss/domain": domain.detach()}
        return source + self.options.weight * domain, scalars


class _OuterProduct(nn.Module):
    """Outer product of features (B, D) and predictions (B, K): (B, K * D)."""

    def forward(self, features: Tensor, p: Tensor) -> Tensor:
        return (p[:, :, None] * features[:, None]).flatten(1)


class _RandomMap(nn.Module):
    """(R_f f) * (R_g g) / sqrt(d), which keeps the outer product's inner products in expectation (the paper, eq. 6).

    The matrices are buffers, so they are saved with the method's weights and a resumed run uses the same map.
    """

    def __init__(self, features: int, classes: int, width: int):
        super().__init__()
        self.register_buffer("features", torch.randn(features, width))
        self.register_buffer("classes", torch.randn(classes, width))

    @full_precision
    def forward(self, features: Tensor, p: Tensor) -> Tensor:
        return (features @ self.features) * (p @ self.classes) / self.features.shape[1] ** 0.5
