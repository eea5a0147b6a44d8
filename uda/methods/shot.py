"""Source hypothesis transfer (SHOT, Liang et al., ICML 2020): the source model alone comes to the target."""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from uda.config import Config, Settings
from uda.data.loaders import Batch
from uda.losses import information_maximisation
from uda.methods.base import METHODS, Method
from uda.models import Network, Prediction


@METHODS.register("shot")
class SourceHypothesisTransfer(Method):
    """Source-free: the classifier stays, features become sure and diverse, and near their class's centroid."""

    adapts = True
    needs_source = False
    prepares = True

    class Options(Settings):
        """Settings of SHOT."""

        weight: float = Field(0.3, ge=0)
        """Of the cross-entropy with the centroids' labels beside information maximisation (the paper's beta)."""

    def __init__(self, network: Network, config: Config):
        super().__init__(network, config)

    def parameter_groups(self) -> dict[str, list]:
        """All but the classifier, which is the source's hypothesis."""
        return {"backbone": list(self.network.backbone.parameters()), "new": list(self.network.head.parameters())}

    def prepare(self, prediction: Prediction) -> dict[str, np.ndarray]:
        return {"labels": centroid_labels(prediction)}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        classifier = self.network.classifier
        features = self.forward(batch).features[batch.is_target]
        bias = None if classifier.bias is None else classifier.bias.detach()
        logits = linear(features, classifier.weight.detach(), bias)
        certainty = information_maximisation(logits)
        labels = cross_entropy(logits, batch.labels[batch.is_target])
        scalars = {"loss/im": certainty.detach(), "loss/labels": labels.detach()}
        return certainty + self.options.weight * labels, scalars


def centroid_labels(prediction: Prediction, rounds: int = 2) -> np.ndarray:
    """One-hot labels (N, K) float32: of each image the class of the nearest centroid, by the cosine (eqs. 4 to 6).

    First the centroids are means weighted by the predictions, then means of the images that chose them; a class that
    no image chooses keeps no centroid.
    """
    features = torch.from_numpy(prediction.features).double()
    features = torch.nn.functional.normalize(features, dim=1)
    weights = torch.from_numpy(prediction.logits).double().softmax(1)
    for _ in range(rounds):
        centroids = torch.nn.functional.normalize(weights.T @ features, dim=1)
        nearness = features @ centroids.T
        nearness[:, weights.sum(0) == 0] = -torch.inf
        weights = torch.nn.functional.one_hot(nearness.argmax(1), weights.shape[1]).double()
    return weights.float().numpy()
