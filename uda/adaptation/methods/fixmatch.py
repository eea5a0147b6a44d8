"""FixMatch (Sohn et al., NeurIPS 2020) for adaptation: the strong view learns what the model says of the plain one."""

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy

from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.adaptation.settings import MethodSettings
from uda.core.settings import Settings
from uda.data.batch import Batch, Rows
from uda.models.network import Network, Output
from uda.selection.selectors import SELECTORS


@ADAPTATION_METHODS.register("fixmatch")
class FixMatch(AdaptationMethod):
    """Cross-entropy on the source, and on the strong view of each target image whose plain view is sure enough.

    With `adaptation.forward=separate` both views share a pass and its BatchNorm statistics; tllib has one for each.
    """

    adapts = True
    views = 2

    class Options(Settings):
        """Settings of FixMatch."""

        weight: float = Field(1.0, ge=0)
        """Of the target's consistency beside the source's cross-entropy."""
        selector: str = "softmax"
        """How sure is the plain view? One of `--list selectors`."""
        threshold: float | None = Field(0.95, ge=0, le=1)
        """Softmax confidence that decides how many of a batch count, whatever the selector that says which."""
        portion: float | None = Field(None, gt=0, le=1)
        """In the threshold's place: the share of each batch that counts."""

        @model_validator(mode="after")
        def known(self):
            SELECTORS[self.selector]
            if self.portion is not None and self.threshold is not None and "threshold" in self.model_fields_set:
                raise ValueError("a threshold or a portion, not both; set the other one to null")
            if self.portion is None and self.threshold is None:
                raise ValueError("neither a threshold nor a portion; give one of them")
            return self

    def __init__(self, network: Network, settings: MethodSettings):
        super().__init__(network, settings)
        self.select = SELECTORS[self.options.selector]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.forward(batch)
        source = self.source_loss(output.logits, batch)
        labels, kept = self.pseudo_labels(output, batch.plain_rows)
        consistency = (cross_entropy(batch.strong_rows.of(output.logits), labels, reduction="none") * kept).mean()
        scalars = {"loss/source": source.detach(), "loss/consistency": consistency.detach(), "kept": kept.mean()}
        return source + self.options.weight * consistency, scalars

    @torch.no_grad()
    def pseudo_labels(self, output: Output, rows: Rows) -> tuple[Tensor, Tensor]:
        """Of some rows: labels (n,), and 1 where they are kept, else 0, float32 (n,).

        With softmax these are FixMatch's: what is above the threshold. Another selector keeps as many, its own surest.
        """
        device = output.logits.device
        # MPS has no double precision, in which selectors rank.
        where = "cpu" if device.type == "mps" else device
        features, logits = (rows.of(values).detach().to(where) for values in output)
        scores = self.select(features, logits, self.network.weight.detach().to(where))
        surest, labels = scores.max(1)
        rank = surest.argsort(descending=True, stable=True).argsort()
        if self.options.portion is None:
            count = (logits.double().softmax(1).amax(1) >= self.options.threshold).sum()
        else:
            count = max(1, round(self.options.portion * len(surest)))
        return labels.to(device), (rank < count).float().to(device)
