"""Meta-learning domain generalisation (MLDG, Li et al., AAAI 2018)."""

from contextlib import nullcontext

from pydantic import Field
from torch import Tensor

from uda.core.settings import Settings
from uda.data.batch import Batch
from uda.generalization.methods.base import GENERALIZATION_METHODS, GeneralizationMethod
from uda.generalization.methods.inner_step import descended, gradients, with_gradient
from uda.generalization.methods.second_derivatives import QuickSecondDerivatives


@GENERALIZATION_METHODS.register("mldg")
class MetaLearningDomainGeneralization(GeneralizationMethod):
    """L_train(theta) + beta * L_test(theta - alpha * grad L_train(theta)): steps on some domains must help another.

    L_test: loss on the meta-test domain, a seen domain drawn at each step, in a separate forward pass.
    L_train: loss on all other seen domains in one forward pass (one set of BatchNorm statistics).
    theta: all trained parameters; alpha: `inner_lr`.

    Difference from the authors' code (HAHA-DL/MLDG): our L_train is the mean over the meta-train images, theirs is the
    sum of the domains' means. With three seen domains theirs is twice as large. Their inner step is then twice as long,
    and beta has half the weight relative to L_train.
    """

    least_domains = 2
    compiles = False

    class Options(Settings):
        """Settings of MLDG."""

        # With the 0.5 of the authors' script, pretrained networks with BatchNorm diverge. 0.01 works on digits too.
        inner_lr: float = Field(0.01, gt=0)
        """Learning rate alpha of the inner step."""
        beta: float = Field(1.0, ge=0)
        """Weight of the meta-test loss."""
        first_order: bool = False
        """Treat the inner gradient as a constant. This needs no second derivatives and two fifths of the time."""

    def precision(self, asked: str) -> str:
        """fp32 for second derivatives, because they are slow under autocast. fp32 in place of fp16 also without them,
        because fp16 loses small inner gradients."""
        return asked if self.options.first_order and asked != "fp16" else "fp32"

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        options, theta = self.options, self.trained()
        test = batch.domain_rows(self.draw_domain())
        train = test.others

        with nullcontext() if options.first_order else QuickSecondDerivatives():
            logits = self.network(train.of(batch.images)).logits
        train_loss = self.classification(logits, batch, train)
        slopes = gradients(train_loss, theta, differentiable=not options.first_order)
        ahead = descended(theta, slopes, options.inner_lr)
        test_loss = self.classification(self.functional_logits(ahead, test.of(batch.images)), batch, test)

        # First order: grad L_train is already known, so no second backward pass is needed.
        learnt = with_gradient(theta, slopes) if options.first_order else train_loss
        value = train_loss.detach() + options.beta * test_loss.detach()
        parts = {"loss": value, "loss/meta_train": train_loss.detach(), "loss/meta_test": test_loss.detach()}
        return learnt + options.beta * test_loss, parts
