"""The network: backbone -> head (optional) -> feature x -> linear classifier W."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from uda.data.features import features_of
from uda.data.images import Images
from uda.data.settings import TransformSettings
from uda.models.backbones import architecture, create_backbone
from uda.models.feature_maker import check_made_by, told_of
from uda.models.losses import LOSSES, ClassificationLoss, CrossEntropy
from uda.models.settings import ModelSettings
from uda.models.weights import LATER


class Output(NamedTuple):
    """The result of a forward pass, in fp32 also under autocast."""

    features: Tensor
    """(B, D), the input x of the classifier."""
    logits: Tensor
    """(B, K)."""


@dataclass(frozen=True)
class Prediction:
    """The result of a predict pass, with one row for each image, in the images' order."""

    features: np.ndarray
    """(N, D) float32."""
    logits: np.ndarray
    """(N, K) float32."""
    weight: np.ndarray
    """(K, D) float32, the classifier's weight."""

    def of_classes(self, which: np.ndarray) -> "Prediction":
        """The prediction with only the classes in `which`, bool (K,)."""
        return Prediction(self.features, self.logits[:, which], self.weight[which])


class Classifier(nn.Linear):
    """The last layer: weight (K, D) and bias (K,), and the loss that computes the logits.

    With `weight_norm`, the parameters are the length (K, 1) and direction (K, D) of each row. `weight` is computed from
    them. Predictions and angles use `weight`, but the state dict does not contain it.
    """

    def __init__(self, width: int, num_classes: int, bias: bool, loss: ClassificationLoss, weight_norm: bool = False):
        super().__init__(width, num_classes, bias)
        self.loss = loss
        if weight_norm:
            parametrizations.weight_norm(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights and biases, as nn.Linear does."""
        if not parametrize.is_parametrized(self):
            return super().reset_parameters()
        drawn = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        self.start_from(drawn.weight, drawn.bias)

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Set the weight to `weight` (K, D), and the bias, if there is one, to `bias` (K,) or to 0."""
        if parametrize.is_parametrized(self):  # this sets the parameters to its lengths and directions
            self.weight = weight.detach().clone().to(self.weight)
        else:
            self.weight.copy_(weight)
        if self.bias is not None:
            self.bias.zero_() if bias is None else self.bias.copy_(bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.loss.logits(features, self.weight, self.bias)


class Network(nn.Module):
    """Backbone, an optional head (Linear, ReLU), and a classifier. The feature x is the classifier's input.

    Args:
        backbone: module that maps images (B, C, S, S) to pooled features (B, `width`).
        width: width of the backbone's features.
        num_classes: K.
        head: widths of the head's layers. The last one is D. None: there is no head.
        dropout: dropout probability before the classifier, and between the head's layers.
        bias: whether the classifier has biases.
        head_batch_norm: whether the head has BatchNorm between Linear and ReLU.
        head_activation: activation of the head's last layer, `relu` or `none`.
        weight_norm: whether the classifier has weight normalisation.
        loss: the classification loss, which computes the logits. None: the cross-entropy of the linear classifier.
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
    def on_features(self) -> bool:
        """Whether the network takes features (B, D) in place of images."""
        return isinstance(self.backbone, nn.Flatten)

    @property
    def loss(self) -> ClassificationLoss:
        """The classification loss, which computes the logits."""
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
        """Features (B, D) -> logits (B, K). In training, each call draws its own dropout."""
        if not torch.is_autocast_enabled(features.device.type):  # entering the context below costs time
            return self.classifier(self.dropout(features))
        with torch.autocast(features.device.type, enabled=False):
            return self.classifier(self.dropout(features.float()))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by role: `backbone` (possibly pretrained) and `new` (head and classifier)."""
        return {
            "backbone": list(self.backbone.parameters()),
            "new": [*self.head.parameters(), *self.classifier.parameters()],
        }


def describe_network(
    settings: ModelSettings, classes: Sequence[str], images: Images | None = None
) -> dict[str, object]:
    """The description of a network in its weight file. It must agree with that of a network that loads the file.

    It does not have the tag of the backbone's initial weights, because the file has its own weights. `images`: what the
    network is trained on. Of features, the file has only the layers after the backbone, and `features` tells their
    width and what made them.
    """
    found = {"backbone": architecture(settings.backbone), "head": settings.head, "bias": settings.bias}
    if images is not None and (features := features_of(images)):
        found["backbone"] = told_of(features[0].width, features[0].made_by)
        found["features"] = {"width": features[0].width, "made_by": dict(features[0].made_by)}
    later = {name: getattr(settings, name) for name, usual in LATER.items() if getattr(settings, name) != usual}
    return {**found, **later, "classes": list(classes)}


def create_network(settings: ModelSettings, num_classes: int, in_channels: int) -> Network:
    """The network that a config describes. New layers are drawn from torch's global generator."""
    return network_on(*create_backbone(settings.backbone, settings.weights, in_channels), settings, num_classes)


def network_for(images: Images, settings: ModelSettings, transforms: TransformSettings, num_classes: int) -> Network:
    """The network that a config describes, for images or for their features.

    Raises UserError if features were made with another backbone or transform than the config names.
    """
    features = features_of(images)
    if not features:
        return create_network(settings, num_classes, len(transforms.mean))
    check_made_by(features[0].made_by, settings, transforms)
    return network_on(nn.Flatten(), features[0].width, settings, num_classes)


def network_on(backbone: nn.Module, width: int, settings: ModelSettings, num_classes: int) -> Network:
    """A network on a backbone with features of `width`. The config describes its head, classifier and loss."""
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
