"""MetaReg: a regulariser learnt so that it generalises (Balaji et al., NeurIPS 2018)."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from uda.core.errors import UserError
from uda.core.settings import Settings
from uda.data.batch import Batch
from uda.generalization.methods.base import GENERALIZATION_METHODS, GeneralizationMethod
from uda.generalization.methods.inner_step import descended, gradients
from uda.models.network import Classifier, Network
from uda.models.precision import full_precision
from uda.training.method import Optimizer


class WeightedL1(nn.Module):
    """R(w) = sum_j phi_j |w_j| over the entries of a weight (K, D); phi, of the same shape, is not negative."""

    def __init__(self, shape: torch.Size, initial: float):
        super().__init__()
        self.phi = nn.Parameter(torch.full(shape, initial))

    def forward(self, weight: Tensor) -> Tensor:
        """(K, D) -> scalar."""
        return (self.phi * weight.abs()).sum()

    @torch.no_grad()
    def project(self) -> None:
        """Bring phi back to where it may be. A negative entry would pay for ever larger weights, without a bound."""
        self.phi.clamp_(min=0)


@GENERALIZATION_METHODS.register("metareg")
class MetaReg(GeneralizationMethod):
    """Meta-learns a weighted L1 of the classifier's weights, then trains a fresh classifier under it.

    Stage 1: psi is everything before the classifier, theta_d the classifier of seen domain d. At each step
        psi, theta_d  descend the mean of the domains' losses L_d(psi, theta_d);
        theta_a       takes, in a copy, l steps down L_a + R_phi(theta_a) on the features as they are;
        phi           descends L_b of the copy, through those steps, and stays >= 0; a != b are drawn at each step.
    Stage 2: psi goes on and a fresh classifier, on all seen domains, with R_phi; phi is frozen.

    All domains share a forward pass (one set of BatchNorm statistics). The inner steps see the step's images of a each
    time. The network's own classifier, which predicts, learns in stage 1 too, on the features as they are: that changes
    nothing else and gives the reports of that stage a meaning.
    """

    least_domains = 2
    stages = (0.5, 0.5)

    class Options(Settings):
        """Settings of MetaReg."""

        inner_steps: int = Field(3, ge=1)
        """Inner steps l on domain a."""
        inner_lr: float = Field(0.1, gt=0)
        """Their length."""
        initial: float = Field(1e-3, ge=0)
        """What every entry of phi begins as."""
        meta_weight: float = Field(1.0, gt=0)
        """Weight of L_b in the descent of phi: with SGD a factor of phi's learning rate."""

    def __init__(self, network: Network, num_domains: int, **settings):
        super().__init__(network, num_domains, **settings)
        if parametrize.is_parametrized(network.classifier):
            raise UserError("model.weight_norm: 'metareg' learns a penalty of the weights themselves; set it to false")
        self.modules["classifiers"] = nn.ModuleList(_fresh(network.classifier) for _ in range(num_domains))
        self.modules["regulariser"] = WeightedL1(network.weight.shape, self.options.initial)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        own = {name: list(module.parameters()) for name, module in self.modules.items()}
        return {**self.network.parameter_groups(), **own}

    def begin(self, stage: int) -> None:
        super().begin(stage)
        if stage == 1:
            self.network.classifier.load_state_dict(_fresh(self.network.classifier).state_dict())
            self.modules.requires_grad_(False)

    def step(self, batch: Batch, optimizer: Optimizer, progress: float) -> dict[str, Tensor]:
        return (self.learn_regulariser if self.stage == 0 else self.learn_with_it)(batch, optimizer)

    def learn_regulariser(self, batch: Batch, optimizer: Optimizer) -> dict[str, Tensor]:
        """A step of stage 1."""
        a = self.draw_domain()
        b = self.draw_domain(without=a)
        features = self.network.dropout(self.network.features(batch.images))
        as_they_are = features.detach()
        classifiers = self.modules["classifiers"]

        # The copies start from the classifiers as they are before this step's descent.
        meta_loss = self.meta_loss(as_they_are, batch, a, b)
        losses = []
        for domain, classifier in enumerate(classifiers):
            rows = batch.domain_rows(domain)
            losses.append(self.classification(logits(rows.of(features), classifier), batch, rows))
        loss = torch.stack(losses).mean()
        own = self.classification(logits(as_they_are, self.network.classifier), batch)

        optimizer.descend(self.options.meta_weight * meta_loss, only="regulariser")
        self.modules["regulariser"].project()
        optimizer.descend(loss + own)
        phi = self.modules["regulariser"].phi.detach()
        parts = {"loss/meta_test": meta_loss.detach(), "phi/mean": phi.mean(), "phi/deviation": phi.std(correction=0)}
        return {"loss": loss.detach(), **parts}

    def meta_loss(self, features: Tensor, batch: Batch, a: int, b: int) -> Tensor:
        """L_b after l steps of a's classifier on L_a + R_phi, a function of phi. Features (B, D) without a gradient."""
        of_a, of_b = batch.domain_rows(a), batch.domain_rows(b)
        classifier = self.modules["classifiers"][a]
        theta = {name: p.detach().requires_grad_() for name, p in classifier.named_parameters()}
        for _ in range(self.options.inner_steps):
            inner = self.classification(logits(of_a.of(features), classifier, theta), batch, of_a)
            inner = inner + self.modules["regulariser"](theta["weight"])
            theta = descended(theta, gradients(inner, theta, differentiable=True), self.options.inner_lr)
        return self.classification(logits(of_b.of(features), classifier, theta), batch, of_b)

    def learn_with_it(self, batch: Batch, optimizer: Optimizer) -> dict[str, Tensor]:
        """A step of stage 2."""
        loss = self.classification(self.network(batch.images).logits, batch)
        penalty = self.modules["regulariser"](self.network.weight)
        optimizer.descend(loss + penalty)
        return {"loss": (loss + penalty).detach(), "loss/regulariser": penalty.detach()}


@full_precision
def logits(features: Tensor, classifier: Classifier, parameters: dict[str, Tensor] | None = None) -> Tensor:
    """Logits (B, K) from features (B, D), of a classifier or of what it would be with other parameters."""
    return classifier(features) if parameters is None else functional_call(classifier, parameters, (features,))


def _fresh(classifier: Classifier) -> Classifier:
    """One like it with weights of its own, drawn anew on the CPU, whose generator the run has seeded."""
    return Classifier(classifier.in_features, classifier.out_features, classifier.bias is not None, classifier.loss)
