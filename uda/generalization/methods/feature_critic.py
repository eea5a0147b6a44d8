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
    """The learnt loss h_omega(features) = mean softplus(MLP(features))."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    @full_precision
    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) to a scalar above 0."""
        return F.softplus(self.layers(features)).mean()


@GENERALIZATION_METHODS.register("feature_critic")
class FeatureCritic(GeneralizationMethod):
    """Learns an auxiliary loss h of the features. A step with h must help another domain more than a step without h.

    Stage 1 is ERM on all seen domains. In stage 2, each step draws one seen domain as the meta-test domain. The other
    seen domains are the meta-train domains. theta: all parameters before the classifier; omega: the critic.
        theta_old = theta - alpha * grad L_train,  theta_new = theta - alpha * grad (L_train + weight * h_omega);
        omega                  descends -tanh(L_test(theta_old) - L_test(theta_new)), through theta_new;
        theta, the classifier  descend L_train + weight * h_omega (the classifier gets no gradient of h).

    The meta-train domains share a forward pass. The meta-test domain has two separate forward passes, so its BatchNorm
    statistics differ.

    Differences from the authors' code for PACS (liyiying/Feature_Critic): their `weight` is 0.01, their alpha is the
    network's learning rate, 5e-4, and their critic learns at 1e-3. Their steps have one meta-train domain and one
    meta-test domain. Our `weight` is 1, our alpha is 0.01, and our critic learns at the run's learning rate from all
    other seen domains.
    """

    least_domains = 2
    compiles = False
    stages = (0.5, 0.5)

    class Options(Settings):
        """Settings of Feature-Critic."""

        inner_lr: float = Field(0.01, gt=0)
        """Length alpha of the steps that are compared."""
        weight: float = Field(1.0, gt=0)
        """Weight of the critic's loss. The classification loss has weight 1."""
        hidden: int = Field(512, ge=1)
        """Width of the critic's hidden layer."""

    def __init__(self, network: Network, num_domains: int, **settings):
        super().__init__(network, num_domains, **settings)
        if not self.before_classifier():
            raise UserError(
                "method: 'feature_critic' trains the features, but this network trains no features; set model.head, "
                "or train on images (data.features=null)"
            )
        self.modules["critic"] = Critic(network.weight.shape[1], self.options.hidden)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {**self.network.parameter_groups(), "critic": list(self.modules["critic"].parameters())}

    def precision(self, asked: str) -> str:
        """Always fp32. Second derivatives are slow under autocast, and fp16 loses small inner gradients."""
        return "fp32"

    def before_classifier(self) -> dict[str, Tensor]:
        """The trained parameters before the classifier, by name."""
        return {name: p for name, p in self.trained().items() if not name.startswith("classifier.")}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.stage == 0:
            return self.classification(self.network(batch.images).logits, batch), {}
        return self.with_critic(batch)

    def with_critic(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Stage 2: a scalar that has the gradients of the network and the critic, and the losses by name."""
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
        # Only the gradient of omega is needed, so autograd skips theta.
        by_meta = gradients(-(old_loss - new_loss).tanh(), omega)

        descent = with_gradient(trained, by_classes) + with_gradient(theta, by_critic) + with_gradient(omega, by_meta)
        return descent, {
            "loss": (train_loss + critic_loss).detach(),
            "loss/critic": critic_loss.detach(),
            "loss/meta_gain": (old_loss - new_loss).detach(),
        }
