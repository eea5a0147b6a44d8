"""FixMatch (Sohn et al., NeurIPS 2020) for adaptation: the strong view learns what the model says of the plain one."""

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy

from uda.config import Config, Settings
from uda.data.loaders import Batch
from uda.methods.base import METHODS, Method
from uda.models import Network, Output
from uda.selectors import SELECTORS


@METHODS.register("fixmatch")
class FixMatch(Method):
    """Cross-entropy on the source, and on the strong view of each target image whose plain view is sure enough."""

    adapts = True
    views = 2

    class Options(Settings):
        """Settings of FixMatch."""

        weight: float = Field(1.0, ge=0)
        """Of the target's consistency beside the source's cross-entropy."""
        selector: str = "softmax"
        """How sure is the plain view? One of `--list selectors`."""
        threshold: float | None = None
        """Score from which on a pseudo-label counts; null: 0.95 for softmax, and `portion` for every other selector."""
        portion: float | None = Field(None, gt=0, le=1)
        """In a threshold's place: the surest share of each batch's target images; null: a half."""

        @model_validator(mode="after")
        def known(self):
            SELECTORS[self.selector]
            if self.threshold is not None and self.portion is not None:
                raise ValueError("a threshold or a portion, not both")
            return self

    def __init__(self, network: Network, config: Config):
        super().__init__(network, config)
        options = self.options
        self.select = SELECTORS[options.selector]
        self.threshold = options.threshold
        if self.threshold is None and options.portion is None and options.selector == "softmax":
            self.threshold = 0.95
        self.portion = options.portion or 0.5

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.forward(batch)
        source = self.source_loss(output.logits, batch)
        strong = batch.view == 1
        labels, kept = self.pseudo_labels(output, batch.is_target & ~strong)
        consistency = (cross_entropy(output.logits[strong], labels, reduction="none") * kept).mean()
        scalars = {"loss/source": source.detach(), "loss/consistency": consistency.detach(), "kept": kept.mean()}
        return source + self.options.weight * consistency, scalars

    @torch.no_grad()
    def pseudo_labels(self, output: Output, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of some rows: labels (n,), and 1 where they are kept, else 0, float32 (n,)."""
        scores = self.select(output.features[rows].detach(), output.logits[rows].detach(), self.network.weight.detach())
        surest, labels = scores.max(1)
        threshold = self.threshold
        if threshold is None:
            threshold = surest.sort(descending=True).values[max(1, round(self.portion * len(surest))) - 1]
        return labels, (surest >= threshold).float()
