"""Deep adaptation network (DAN, Long et al., ICML 2015): MK-MMD brings the features of both domains together."""

import torch
from pydantic import Field
from torch import Tensor

from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.core.settings import Settings
from uda.data.batch import Batch
from uda.models.precision import full_precision


@ADAPTATION_METHODS.register("mmd")
class MaximumMeanDiscrepancy(AdaptationMethod):
    """Cross-entropy on the source, maximum mean discrepancy between the domains' features x (DAN).

    This code compares x before dropout, over all pairs of images. tllib compares features after dropout, with a
    linear-time estimate over neighbouring pairs.
    """

    adapts = True
    compares_two = True

    class Options(Settings):
        """Settings of MMD."""

        weight: float = Field(1.0, ge=0)
        """Weight of the discrepancy; the source cross-entropy has weight 1."""
        exponents: tuple[int, ...] = Field((-3, -2, -1, 0, 1), min_length=1)
        """Exponent k of each kernel: its sigma^2 is 2^k times the mean squared distance within the batch."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        features, logits = self.forward(batch)
        source = self.source_loss(logits, batch)
        discrepancy = mk_mmd(batch.source_rows.of(features), batch.target_rows.of(features), self.options.exponents)
        scalars = {"loss/source": source.detach(), "loss/mmd": discrepancy.detach()}
        return source + self.options.weight * discrepancy, scalars


@full_precision
def mk_mmd(source: Tensor, target: Tensor, exponents: tuple[int, ...] = (-3, -2, -1, 0, 1)) -> Tensor:
    """Squared maximum mean discrepancy of two samples (n, D) and (m, D), unbiased, a scalar that may be below 0.

    The kernel is a sum of Gaussians exp(-d^2 / (2 sigma^2)), sigma^2 = 2^k * mean(d^2) over all pairs of different
    images. An image is not compared with itself (Gretton et al., JMLR 2012, eq. 3). If a domain has only one image, its
    own term is 0.
    """
    both = torch.cat([source, target])
    squares = (both * both).sum(1)
    distance = (squares[:, None] + squares - 2 * both @ both.T).clamp(min=0)
    n, m = len(source), len(target)
    unlike = ~torch.eye(n + m, dtype=torch.bool, device=both.device)
    # In row-major order, n + m entries lie between one diagonal entry and the next. The view drops the diagonal.
    off_diagonal = distance.detach().flatten()[:-1].view(n + m - 1, n + m + 1)[:, 1:]
    mean = off_diagonal.flatten().mean().clamp(min=torch.finfo(distance.dtype).tiny)
    kernel = sum(torch.exp(-distance / (2 * 2.0**k * mean)) for k in exponents) * unlike
    within = [part.sum() / max(1, size * (size - 1)) for part, size in ((kernel[:n, :n], n), (kernel[n:, n:], m))]
    return within[0] + within[1] - 2 * kernel[:n, n:].mean()
