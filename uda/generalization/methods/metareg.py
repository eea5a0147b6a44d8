"""MetaReg, a regulariser learnt for generalisation (Balaji et al., NeurIPS 2018)."""

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
    """R(w) = sum_j phi_j |w_j| over the entries of a weight (K, D). phi has the same shape and is not negative."""

    def __init__(self, shape: torch.Size, initial: float):
        super().__init__()
        self.phi = nn.Parameter(torch.full(shape, initial))

    def forward(self, weight: Tensor) -> Tensor:
        """(K, D) -> scalar."""
        return (self.phi * weight.abs()).sum()

    @torch.no_grad()
    def project(self) -> None:
        """Set negative entries of phi to 0. A negative entry would reward larger weights without a bound."""
        self.phi.clamp_(min=0)


@GENERALIZATION_METHODS.register("metareg")
class MetaReg(GeneralizationMethod):
    """Meta-learns a weighted L1 penalty of the classifier's weights, then trains a new classifier with this penalty.

    Stage 1: psi is everything before the classifier, theta_d is the classifier of seen domain d. At each step
        psi, theta_d  descend the mean of the domains' losses L_d(psi, theta_d);
        theta_a       a copy takes l steps down L_a + R_phi(theta_a), with features that get no gradient;
        phi           descends L_b of the copy, through these steps, and stays >= 0; a != b are drawn at each step.
    Stage 2: psi is trained further, with a new classifier and R_phi, on all seen domains. phi is frozen.

    All domains share a forward pass (one set of BatchNorm statistics). All inner steps of a step use the same images of
    domain a. The network's own classifier makes the predictions. It is also trained in stage 1, so that the reports of
    stage 1 are meaningful. Its features get no gradient from it, so it changes nothing else.
    """

    least_domains = 2
    keeps_classifier = False
    stages = (0.5, 0.5)

    class Options(Settings):
        """Settings of MetaReg."""

        inner_steps: int = Field(3, ge=1)
        """Inner steps l on domain a."""
        inner_lr: float = Field(0.1, gt=0)
        """Learning rate of the inner steps."""
        initial: float = Field(1e-3, ge=0)
        """Initial value of every entry of phi."""
        meta_weight: float = Field(1.0, gt=0)
        """Weight of L_b in the descent of phi. With SGD it scales phi's learning rate."""

    def __init__(self, network: Network, num_domains: int, **settings):
        super().__init__(network, num_domains, **settings)
        if parametrize.is_parametrized(network.classifier):
            raise UserError("model.weight_norm: 'metareg' learns a penalty on the raw weights; set it to false")
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

        # Before the descent, because the copy starts from the classifiers before this step.
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
        """L_b after l steps of a's classifier on L_a + R_phi, as a function of phi. Features (B, D) get no gradient."""
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
    """Logits (B, K) from features (B, D), by a classifier or by the classifier with other parameters."""
    return classifier(features) if parameters is None else functional_call(classifier, parameters, (features,))


def _fresh(classifier: Classifier) -> Classifier:
    """A classifier of the same kind with new random weights, drawn on the CPU by the run's seeded generator."""
    return Classifier(classifier.in_features, classifier.out_features, classifier.bias is not None, classifier.loss)
