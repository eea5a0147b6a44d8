"""Feature-Critic networks (Li et al., ICML 2019)."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from uda.core.errors import UserError
from uda.core.settings import Settings
from uda.data.batch import Batch
from uda.generalization.methods.base import GENERALIZATION_METHODS, GeneralizationMethod
from uda.generalization.methods.inner_step import descended, gradients, with_gradient
from uda.generalization.methods.second_derivatives import QuickSecondDerivatives
from uda.models.network import Network
from uda.models.precision import full_precision


class Critic(nn.Module):
    """h_omega(features) = mean softplus(MLP(features)), the loss that is learnt."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    @full_precision
    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) to a scalar above 0."""
        return F.softplus(self.layers(features)).mean()


@GENERALIZATION_METHODS.register("feature_critic")
class FeatureCritic(GeneralizationMethod):
    """Learns an auxiliary loss h of the features, such that a step with it helps another domain more than one without.

    Stage 1: the aggregate of all seen domains (ERM). Stage 2: at each step one seen domain, drawn anew, is meta-test,
    the others are meta-train; theta is everything before the classifier, omega the critic:
        theta_old = theta - alpha * grad L_train,  theta_new = theta - alpha * grad (L_train + weight * h_omega);
        omega                  descends -tanh(L_test(theta_old) - L_test(theta_new)), through theta_new;
        theta, the classifier  descend L_train + weight * h_omega (the classifier sees no h).

    The meta-train domains share a forward pass; the meta-test domain has two of its own (BatchNorm statistics differ).

    What differs from the authors' code for PACS (liyiying/Feature_Critic): there `weight` is 0.01, alpha is the
    network's learning rate, 5e-4, and the critic learns at 1e-3. A step has one meta-train domain and one meta-test
    domain. Here `weight` is 1, alpha 0.01, and the critic learns at the run's rate from all other seen domains.
    """

    least_domains = 2
    compiles = False
    stages = (0.5, 0.5)

    class Options(Settings):
        """Settings of Feature-Critic."""

        inner_lr: float = Field(0.01, gt=0)
        """Length alpha of the steps that are compared."""
        weight: float = Field(1.0, gt=0)
        """Of the critic's loss beside the classification's."""
        hidden: int = Field(512, ge=1)
        """Width of the critic's hidden layer."""

    def __init__(self, network: Network, num_domains: int, **settings):
        super().__init__(network, num_domains, **settings)
        if not self.before_classifier():
            raise UserError(
                "method: 'feature_critic' teaches features, and none are trained here; set model.head or "
                "training.frozen_backbone=false"
            )
        self.modules["critic"] = Critic(network.weight.shape[1], self.options.hidden)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {**self.network.parameter_groups(), "critic": list(self.modules["critic"].parameters())}

    def precision(self, asked: str) -> str:
        """fp32: second derivatives are slow under autocast, and fp16 loses small inner gradients."""
        return "fp32"

    def before_classifier(self) -> dict[str, Tensor]:
        """The parameters that make the features, by name."""
        return {name: p for name, p in self.trained().items() if not name.startswith("classifier.")}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.stage == 0:
            return self.classification(self.network(batch.images).logits, batch), {}
        return self.with_critic(batch)

    def with_critic(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A step of stage 2: a scalar that has the gradients of network and critic, and the losses by name."""
        options, trained, theta = self.options, self.trained(), self.before_classifier()
        omega = dict(self.modules["critic"].named_parameters())
        test = batch.domain_rows(self.draw_domain())
        train, test_images = test.others, test.of(batch.images)

        with QuickSecondDerivatives():
            output = self.network(train.of(batch.images))
        train_loss = self.classification(output.logits, batch, train)
        critic_loss = options.weight * self.modules["critic"](output.features)
        by_classes = gradients(train_loss, trained, keep=True)
        by_critic = gradients(critic_loss, theta, differentiable=True)

        theta_old = descended(theta, by_classes, options.inner_lr)
        theta_new = descended(theta_old, by_critic, options.inner_lr)
        with torch.no_grad():
            old_loss = self.classification(self.functional_logits(theta_old, test_images), batch, test)
        new_loss = self.classification(self.functional_logits(theta_new, test_images), batch, test)
        # By omega alone: the way back to theta, which is not asked for, is left out.
        by_meta = gradients(-(old_loss - new_loss).tanh(), omega)

        descent = with_gradient(trained, by_classes) + with_gradient(theta, by_critic) + with_gradient(omega, by_meta)
        return descent, {
            "loss": (train_loss + critic_loss).detach(),
            "loss/critic": critic_loss.detach(),
            "loss/meta_gain": (old_loss - new_loss).detach(),
        }
