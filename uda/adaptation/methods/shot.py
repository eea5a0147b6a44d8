"""Source hypothesis transfer (SHOT, Liang et al., ICML 2020): adaptation from a source model without source images."""

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
    """Source-free: the classifier is fixed; target predictions become sure, diverse and near class centroids."""

    adapts = True
    needs_source = False
    prepares = True

    class Options(Settings):
        """Settings of SHOT."""

        weight: float = Field(0.3, ge=0)
        """Weight of the cross-entropy with the centroids' labels (the paper's beta); information maximisation has
        weight 1."""
        labels_from: int = Field(1, ge=1)
        """First interval (`adaptation.evaluate_every`), counted from 1, that uses the centroids' labels. Earlier ones
        use information maximisation only. The authors' code has 2 for VisDA-2017."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters except the classifier's, which is the source's hypothesis."""
        return {"backbone": list(self.network.backbone.parameters()), "new": list(self.network.head.parameters())}

    def prepare(self, prediction: Prediction, interval: int) -> dict[str, np.ndarray]:
        if interval + 1 < self.options.labels_from:
            return {}  # without labels the cross-entropy is 0
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
    """Logits (B, K) of the source's classifier, whose weights get no gradient."""
    bias = None if classifier.bias is None else classifier.bias.detach()
    return classifier.loss.logits(features, classifier.weight.detach(), bias)


def centroid_labels(prediction: Prediction, rounds: int = 2) -> np.ndarray:
    """Labels (N,) int64: for each image the class of the nearest centroid by cosine (the paper, eqs. 4 to 6).

    In the first round a centroid is the mean of all features, weighted by the predictions. Later it is the mean of the
    images with its label. As in the authors' code (object/image_target.py), a class can only be a label if some image
    has it before the round. Their code appends a constant 1 to each feature. The paper and this code do not.
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
