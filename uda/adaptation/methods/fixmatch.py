"""FixMatch (Sohn et al., NeurIPS 2020) for adaptation: the plain view gives the label of the strong view."""

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
    """Cross-entropy on the source, and on the strong view of target images whose plain view is sure enough.

    With `adaptation.forward=separate` both views share a pass and its BatchNorm statistics. tllib has a pass per view.
    """

    adapts = True
    views = 2

    class Options(Settings):
        """Settings of FixMatch."""

        weight: float = Field(1.0, ge=0)
        """Weight of the consistency loss on the target; the source cross-entropy has weight 1."""
        selector: str = "softmax"
        """Score of how sure the plain view is, one of `--list selectors`."""
        threshold: float | None = Field(0.95, ge=0, le=1)
        """Softmax confidence that decides how many images of a batch are kept. The selector decides which ones."""
        portion: float | None = Field(None, gt=0, le=1)
        """Share of each batch that is kept, instead of a threshold."""

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
        """Labels (n,) of the images in `rows`, and a mask float32 (n,): 1 for those that are kept, else 0.

        Softmax keeps the images that reach the threshold, as FixMatch does. Another selector keeps equally many: those
        with its highest scores.
        """
        device = output.logits.device
        # Selectors need double precision, which MPS does not have.
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
