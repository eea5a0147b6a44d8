"""The network: backbone -> (head) -> feature x -> linear classifier W."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from uda.models.backbones import architecture, create_backbone
from uda.models.losses import LOSSES, ClassificationLoss, CrossEntropy
from uda.models.settings import ModelSettings
from uda.models.weights import LATER


class Output(NamedTuple):
    """What a forward pass gives, in fp32 whatever the autocast."""

    features: Tensor
    """(B, D), the input x of the last linear layer."""
    logits: Tensor
    """(B, K)."""


@dataclass(frozen=True)
class Prediction:
    """What a predict pass leaves: one row an image, in the images' order."""

    features: np.ndarray
    """(N, D) float32."""
    logits: np.ndarray
    """(N, K) float32."""
    weight: np.ndarray
    """(K, D) float32, the classifier's rows."""

    def of_classes(self, which: np.ndarray) -> "Prediction":
        """The same without the classes that are not among `which`, bool (K,)."""
        return Prediction(self.features, self.logits[:, which], self.weight[which])


class Classifier(nn.Linear):
    """The last layer: weight (K, D) and bias (K,), and the loss that makes logits of them.

    With `weight_norm` the parameters are each row's length (K, 1) and direction (K, D), and `weight` is computed of
    them: it is what predicts, what angles are measured to, and no name in the state.
    """

    def __init__(self, width: int, num_classes: int, bias: bool, loss: ClassificationLoss, weight_norm: bool = False):
        super().__init__(width, num_classes, bias)
        self.loss = loss
        if weight_norm:
            parametrizations.weight_norm(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weight and bias anew, as nn.Linear does."""
        if not parametrize.is_parametrized(self):
            return super().reset_parameters()
        drawn = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        self.weight = drawn.weight.detach()  # its lengths and directions become the parameters
        if self.bias is not None:
            self.bias.copy_(drawn.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.loss.logits(features, self.weight, self.bias)


class Network(nn.Module):
    """Backbone, an optional head (Linear, ReLU), and a classifier. x is the classifier's input.

    Args:
        backbone: images (B, C, S, S) to pooled features (B, `width`).
        width: the backbone's feature width.
        num_classes: K.
        head: widths of the head's layers, the last is D; None puts the classifier on the backbone.
        dropout: dropout before the classifier, and between the head's layers.
        bias: whether the classifier has biases.
        head_batch_norm: BatchNorm in the head, between Linear and ReLU.
        head_activation: `relu` or `none`, at the head's end.
        weight_norm: weight normalisation of the classifier.
        loss: what makes logits of features and class weights; None: the linear classifier's cross-entropy.
    """

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        num_classes: int,
        head: int | Sequence[int] | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        head_batch_norm: bool = False,
        head_activation: str = "relu",
        weight_norm: bool = False,
        loss: ClassificationLoss | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        widths = [] if head is None else [head] if isinstance(head, int) else list(head)
        layers: list[nn.Module] = []
        for before, after in pairwise([width, *widths]):
            layers += [nn.Dropout(dropout)] if layers and dropout else []
            layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if head_batch_norm else []), nn.ReLU()]
        if layers and head_activation == "none":
            del layers[-1]
        self.head = nn.Sequential(*layers) if layers else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.classifier = Classifier([width, *widths][-1], num_classes, bias, loss or CrossEntropy(), weight_norm)

    @property
    def loss(self) -> ClassificationLoss:
        """What it is trained by; makes the logits."""
        return self.classifier.loss

    @property
    def weight(self) -> Tensor:
        """Class weights W, (K, D)."""
        return self.classifier.weight

    def forward(self, images: Tensor) -> Output:
        """(B, C, S, S) -> features (B, D) and logits (B, K). The last layer is computed in fp32."""
        features = self.features(images)
        return Output(features, self.logits(features))

    def features(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> features (B, D), fp32."""
        return self.head(self.backbone(images)).float()

    def logits(self, features: Tensor) -> Tensor:
        """Features (B, D) -> logits (B, K); in training dropout draws anew at each call."""
        if not torch.is_autocast_enabled(features.device.type):  # the question is free, the context is not
            return self.classifier(self.dropout(features))
        with torch.autocast(features.device.type, enabled=False):
            return self.classifier(self.dropout(features.float()))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by role: `backbone` (possibly pretrained) and `new` (head and classifier)."""
        return {
            "backbone": list(self.backbone.parameters()),
            "new": [*self.head.parameters(), *self.classifier.parameters()],
        }


def describe_network(settings: ModelSettings, classes: Sequence[str]) -> dict[str, object]:
    """What a file of weights says about its network, and must share with a network that loads it.

    Not the tag of the backbone's first weights: it names values, and the file has its own.
    """
    found = {"backbone": architecture(settings.backbone), "head": settings.head, "bias": settings.bias}
    later = {name: getattr(settings, name) for name, usual in LATER.items() if getattr(settings, name) != usual}
    return {**found, **later, "classes": list(classes)}


def create_network(settings: ModelSettings, num_classes: int, in_channels: int) -> Network:
    """The network that a config describes; new layers come from torch's current generator."""
    return network_on(*create_backbone(settings.backbone, settings.weights, in_channels), settings, num_classes)


def network_on(backbone: nn.Module, width: int, settings: ModelSettings, num_classes: int) -> Network:
    """A backbone that gives features of `width`, with the head, classifier and loss that a config describes."""
    return Network(
        backbone,
        width,
        num_classes,
        settings.head,
        settings.dropout,
        settings.bias,
        settings.head_batch_norm,
        settings.head_activation,
        settings.weight_norm,
        LOSSES[settings.loss](**settings.loss_options),
    )
