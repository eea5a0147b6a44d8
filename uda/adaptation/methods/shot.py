"""Source hypothesis transfer (SHOT, Liang et al., ICML 2020): the source model alone comes to the target."""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.adaptation.methods.unlabelled_losses import information_maximisation
from uda.core.settings import Settings
from uda.data.batch import Batch
from uda.models.network import Classifier, Prediction
from uda.models.precision import full_precision


@ADAPTATION_METHODS.register("shot")
class SourceHypothesisTransfer(AdaptationMethod):
    """Source-free: the classifier stays, features become sure and diverse, and near their class's centroid."""

    adapts = True
    needs_source = False
    prepares = True

    class Options(Settings):
        """Settings of SHOT."""

        weight: float = Field(0.3, ge=0)
        """Of the cross-entropy with the centroids' labels beside information maximisation (the paper's beta)."""
        labels_from: int = Field(1, ge=1)
        """First of the intervals (`adaptation.evaluate_every`), counted from 1, with the centroids' labels. Before it
        information maximisation stands alone; the authors' code has 2 for VisDA-2017."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All but the classifier, which is the source's hypothesis."""
        return {"backbone": list(self.network.backbone.parameters()), "new": list(self.network.head.parameters())}

    def prepare(self, prediction: Prediction, interval: int) -> dict[str, np.ndarray]:
        if interval + 1 < self.options.labels_from:
            return {}  # images without a label: their cross-entropy is 0
        return {"labels": centroid_labels(prediction)}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.by_domain(self.network.features, batch)
        logits = hypothesis(features, self.network.classifier)
        unannotated = batch.unannotated_rows
        certainty = information_maximisation(unannotated.of(logits))
        labels = cross_entropy(unannotated.of(logits), unannotated.of(batch.labels))
        scalars = {"loss/im": certainty.detach(), "loss/labels": labels.detach()}
        loss = certainty + self.options.weight * labels
        if self.settings.target_labelled:
            loss = loss + self.source_loss(logits, batch)
        return loss, scalars


@full_precision
def hypothesis(features: Tensor, classifier: Classifier) -> Tensor:
    """Logits (B, K) of the source's classifier, which gets no gradient."""
    bias = None if classifier.bias is None else classifier.bias.detach()
    return classifier.loss.logits(features, classifier.weight.detach(), bias)


def centroid_labels(prediction: Prediction, rounds: int = 2) -> np.ndarray:
    """Labels (N,) int64: of each image the class of the nearest centroid, by the cosine (the paper, eqs. 4 to 6).

    First the centroids are means weighted by the predictions, then means of the images that chose them. As in the
    authors' code (object/image_target.py), only a class that is the label of some image, first by the predictions and
    then by the centroids, can be a label. That code appends a constant 1 to each feature; the paper and we do not.
    """
    features = torch.nn.functional.normalize(torch.from_numpy(prediction.features).double(), dim=1)
    logits = torch.from_numpy(prediction.logits).double()
    labels, weights = logits.argmax(1), logits.softmax(1)
    for _ in range(rounds):
        centroids = torch.nn.functional.normalize(weights.T @ features, dim=1)
        nearness = features @ centroids.T
        nearness[:, labels.bincount(minlength=nearness.shape[1]) == 0] = -torch.inf
        labels = nearness.argmax(1)
        weights = torch.nn.functional.one_hot(labels, weights.shape[1]).double()
    return labels.numpy()
