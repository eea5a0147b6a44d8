"""Adversarial dropout regularisation (ADR, Saito et al., ICLR 2018), and its minimax with entropy (ENT)."""

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor, nn

from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.adaptation.methods.unlabelled_losses import entropy
from uda.adaptation.settings import MethodSettings
from uda.core.errors import UserError
from uda.core.settings import Settings
from uda.data.batch import Batch
from uda.models.network import Network
from uda.models.precision import full_precision
from uda.training.method import Optimizer


class _Minimax(AdaptationMethod):
    """The steps that ADR and ENT share: the head maximises a figure on the target, the generator minimises it.

    A parameter has one momentum over all phases, as with the authors' optimisers of generator and head. Their code
    (mil-tokyo/adr_da) runs phase C on target images only. In this code `adaptation.forward` decides for all phases.
    """

    adapts = True

    class Options(Settings):
        """Settings of the minimax."""

        generator_steps: int = Field(4, ge=1)
        """Updates of the generator in phase C."""
        weight: float = Field(1.0, ge=0)
        """Weight of the discrepancy (ADR) or the entropy (ENT) on the target; the source cross-entropy has weight 1.
        It is a sum over the classes, as in the paper. The authors' code takes the mean, which corresponds to a weight
        of 1 / K."""

    @abstractmethod
    def figure(self, features: Tensor, batch: Batch) -> Tensor:
        """The figure on the target that head and generator oppose each other in, from features (B, width): a scalar."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = self.network.parameter_groups()
        return {"backbone": groups["backbone"], "head": groups["new"]}

    def step(self, batch: Batch, optimizer: Optimizer, progress: float) -> dict[str, Tensor]:
        weight = self.options.weight

        # Phase A: generator and head learn the source.
        features = self.generate(batch)
        source = self.source(features, batch)
        optimizer.descend(source)

        # Phase B: the head keeps the source and maximises the figure. The generator gets no gradient.
        features = self.generate(batch)
        frozen = features.detach()
        apart = self.source(frozen, batch) - weight * self.figure(frozen, batch)
        optimizer.descend(apart, only="head")

        # Phase C: the generator minimises the figure. Its first step reuses the features of phase B.
        for step in range(self.options.generator_steps):
            features = features if step == 0 else self.generate(batch)
            figure = self.figure(features, batch)
            optimizer.descend(weight * figure, only="backbone")
        return {"loss": source.detach(), "loss/target": figure.detach()}

    def generate(self, batch: Batch) -> Tensor:
        """Output of the generator for all images of the batch, (B, width)."""
        return self.by_domain(self.network.backbone, batch)

    def logits(self, features: Tensor, batch: Batch) -> Tensor:
        """Logits of the head, fp32 (B, K). Each call draws a new dropout mask.

        `adaptation.forward` decides whether the domains share BatchNorm statistics, as in the generator.
        """
        return self.by_domain(lambda rows: self.network.logits(self.network.head(rows).float()), batch, features)

    def target_logits(self, features: Tensor, batch: Batch) -> Tensor:
        """Logits of the target images without a true label."""
        return batch.unannotated_rows.of(self.logits(features, batch))

    def source(self, features: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of the source images."""
        return self.source_loss(self.logits(features, batch), batch)


@ADAPTATION_METHODS.register("adr")
class AdversarialDropout(_Minimax):
    """Two dropout passes of the head disagree near its boundary; the generator moves features away from it."""

    def __init__(self, network: Network, settings: MethodSettings):
        super().__init__(network, settings)
        if not network.dropout.p:
            raise UserError("model.dropout: method 'adr' compares two dropout passes of the head; set it, e.g. to 0.5")

    def figure(self, features: Tensor, batch: Batch) -> Tensor:
        return symmetric_kl(self.target_logits(features, batch), self.target_logits(features, batch))


@ADAPTATION_METHODS.register("ent")
class EntropyMinimax(_Minimax):
    """ADR with the entropy of one pass instead of the discrepancy: the head raises it, the generator lowers it."""

    def figure(self, features: Tensor, batch: Batch) -> Tensor:
        return entropy(self.target_logits(features, batch))


@full_precision
def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Mean over images of (KL(p1 || p2) + KL(p2 || p1)) / 2, from logits (B, K), in nats."""
    log_p, log_q = first.log_softmax(1), second.log_softmax(1)
    return 0.5 * ((torch.exp(log_p) - torch.exp(log_q)) * (log_p - log_q)).sum(1).mean()
