"""The segmentation network: body -> decoder -> features x of each cell of the grid -> linear classifier W.

The grid is coarser than the image by the network's stride. The classifier is that of a `Network`, applied to each
cell, so every classification loss works, and every cell has angles. Logits, not features, are upsampled to the pixels:
the classifier is linear, so for logits W x + b the result is the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uda.data.label_coding import VOID
from uda.models.backbones import architecture
from uda.models.bodies import BODIES, create_body
from uda.models.decoders import DECODERS, Decoder
from uda.models.losses import LOSSES, ClassificationLoss, CrossEntropy
from uda.models.network import Classifier
from uda.models.settings import SegmentationModelSettings


class SegmentationOutput(NamedTuple):
    """The result of a forward pass on the grid, in fp32 also under autocast."""

    features: Tensor
    """(B, D, h, w), the input x of the classifier in each cell."""
    logits: Tensor
    """(B, K, h, w)."""


class SegmentationNetwork(nn.Module):
    """Body, decoder, and the classifier of each cell. The feature x of a cell is the classifier's input.

    Images may have any height H and width W. They are padded with 0 at the bottom and on the right, to multiples of the
    body's largest stride. The grid is cut to h = ceil(H / stride) and w = ceil(W / stride).

    Args:
        body: module that maps images to a list of maps, with `channels` and `strides`.
        decoder: makes the features from the maps.
        width: width D of the features.
        num_classes: K.
        activation: activation of the decoder's last layer, `relu` or `none`.
        dropout: probability that a channel of an image's features is left out before the classifier.
        bias: whether the classifier has biases.
        loss: the classification loss, which computes the logits. None: the cross-entropy of the linear classifier.
    """

    on_features = False
    """Whether the network takes features in place of images."""

    def __init__(
        self,
        body: nn.Module,
        decoder: Decoder,
        width: int,
        num_classes: int,
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
        loss: ClassificationLoss | None = None,
    ):
        super().__init__()
        self.backbone = body
        self.decoder = decoder.layers(body.channels, width, activation)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Classifier(width, num_classes, bias, loss or CrossEntropy())
        self.stride = decoder.stride(body.strides)
        """Pixels of the image to a cell of the grid, in both directions."""
        self.multiple = max(body.strides)

    @property
    def loss(self) -> ClassificationLoss:
        """The classification loss of rows, which computes the logits."""
        return self.classifier.loss

    @property
    def weight(self) -> Tensor:
        """Class weights W, (K, D)."""
        return self.classifier.weight

    def forward(self, images: Tensor) -> SegmentationOutput:
        """(B, C, H, W) -> features and logits on the grid. The last layer is computed in fp32."""
        features = self.features(images)
        return SegmentationOutput(features, self.logits(features))

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> features (B, D, h, w), fp32."""
        height, width = images.shape[2:]
        down, right = (cells(pixels, self.multiple) * self.multiple - pixels for pixels in (height, width))
        maps = self.backbone(F.pad(images, (0, right, 0, down)) if down or right else images)
        features = self.decoder(maps)
        return features[:, :, : cells(height, self.stride), : cells(width, self.stride)].float()

    def logits(self, features: Tensor) -> Tensor:
        """Features (B, D, h, w) -> logits (B, K, h, w). In training, each call draws its own dropout."""
        if not torch.is_autocast_enabled(features.device.type):
            return self._classified(features)
        with torch.autocast(features.device.type, enabled=False):
            return self._classified(features.float())

    def _classified(self, features: Tensor) -> Tensor:
        rows = self.dropout(features).permute(0, 2, 3, 1)
        logits = self.classifier(rows.flatten(0, 2))
        return logits.unflatten(0, rows.shape[:3]).permute(0, 3, 1, 2)

    def pixel_loss(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
        """The classification loss of each pixel, with logits that are upsampled to the image's pixels.

        Args:
            logits: (B, K, h, w), on the grid.
            labels: train ids (B, H, W), integers, where VOID has no class; or distributions (B, K, H, W), where zeros
                have no class. H x W is the size of the image.
            smoothing: label smoothing.
            reduction: `mean` over the pixels with a class (0 if there is none), or `none`, (B, H, W) with 0 for pixels
                without a class.
        """
        # In the layout that the loss reads fastest. On the grid, changing it costs little.
        layout = torch.contiguous_format if _is_plain(self.loss) else torch.channels_last
        pixels = upsampled(logits.contiguous(memory_format=layout), self.stride, labels.shape[-2:])
        return pixel_loss(self.loss, pixels, labels, smoothing, reduction)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by role: `backbone` (possibly pretrained) and `new` (decoder and classifier)."""
        return {
            "backbone": list(self.backbone.parameters()),
            "new": [*self.decoder.parameters(), *self.classifier.parameters()],
        }


def cells(pixels: int, stride: int) -> int:
    """Number of cells that cover this many pixels."""
    return (pixels + stride - 1) // stride  # torch.compile knows no remainder of a size that varies


def upsampled(maps: Tensor, stride: int, image_size: tuple[int, int], size: tuple[int, int] | None = None) -> Tensor:
    """Maps on the grid (B, C, h, w), bilinearly upsampled to (B, C, *size).

    The grid may reach beyond the image by less than a cell. What lies there is cut off.

    Args:
        maps: the maps.
        stride: that of the network.
        image_size: height and width of the images that the network was given.
        size: height and width of the result. None: `image_size`.
    """
    wanted = image_size if size is None else size
    full = full_size(maps.shape[2:], stride, image_size, wanted)
    if full != tuple(maps.shape[2:]):
        maps = F.interpolate(maps, size=full, mode="bilinear", align_corners=False)
    return maps[:, :, : wanted[0], : wanted[1]]


def full_size(
    grid: tuple[int, int], stride: int, image_size: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of the whole grid, if the image has `size`. It is rounded to whole pixels."""
    height, width = (
        (2 * count * stride * wanted + pixels) // (2 * pixels)
        for count, pixels, wanted in zip(grid, image_size, size, strict=True)
    )
    return height, width


def pixel_loss(
    loss: ClassificationLoss, logits: Tensor, labels: Tensor, smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """A classification loss of each pixel: logits (B, K, H, W) and labels as in `SegmentationNetwork.pixel_loss`.

    Each pixel is a row of the loss. Pixels without a class have the loss 0 and no gradient.

    Raises:
        ValueError: the reduction is unknown or the sizes differ.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got '{reduction}'")
    if labels.shape[-2:] != logits.shape[-2:] or len(labels) != len(logits):
        raise ValueError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")
    soft = labels.is_floating_point()
    void = labels.sum(1) == 0 if soft else labels == VOID
    targets = labels if soft else labels.long().masked_fill(void, 0)
    if _is_plain(loss):
        losses = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    else:
        rows = logits.permute(0, 2, 3, 1).flatten(0, 2)
        if soft:
            targets = targets.permute(0, 2, 3, 1).flatten(0, 2)
        else:
            targets = F.one_hot(targets.flatten(), rows.shape[1]).to(rows.dtype)
        losses = loss(rows, targets, smoothing, "none").view(void.shape)
    losses = losses.masked_fill(void, 0.0)
    return losses if reduction == "none" else losses.sum() / void.logical_not().sum().clamp(min=1)


def _is_plain(loss: ClassificationLoss) -> bool:
    """Whether the loss is the cross-entropy of its logits. It then needs no rows, which take time and memory."""
    kind, base = type(loss), ClassificationLoss
    return kind.with_margin is base.with_margin and kind.__call__ is base.__call__


def best_classes(
    logits: Tensor, stride: int, image_size: tuple[int, int], size: tuple[int, int] | None = None
) -> Tensor:
    """The class of the largest upsampled logit, uint8 (B, *size), from logits on the grid (B, K, h, w).

    `stride`, `image_size`, `size`: as in `upsampled`.
    """
    logits = logits.contiguous(memory_format=torch.channels_last)  # several times faster
    return torch.cat([upsampled(one, stride, image_size, size).argmax(1).byte() for one in logits.split(1)])


def create_segmentation_network(
    settings: SegmentationModelSettings, num_classes: int, in_channels: int
) -> SegmentationNetwork:
    """The network that a config describes. New layers are drawn from torch's global generator."""
    return SegmentationNetwork(
        create_body(settings.backbone, settings.weights, in_channels, settings.output_stride),
        DECODERS[settings.decoder](**settings.decoder_options),
        settings.width,
        num_classes,
        settings.decoder_activation,
        settings.dropout,
        settings.bias,
        LOSSES[settings.loss](**settings.loss_options),
    )


def describe_segmentation_network(settings: SegmentationModelSettings, classes: Sequence[str]) -> dict[str, object]:
    """The description of a network in its weight file. It must agree with that of a network that loads the file.

    It has what the shapes of the tensors do not tell, such as strides and dilation.
    """
    return {
        "task": "segmentation",
        "backbone": settings.backbone if settings.backbone in BODIES else architecture(settings.backbone),
        "output_stride": settings.output_stride,
        "decoder": settings.decoder,
        "decoder_options": DECODERS[settings.decoder](**settings.decoder_options).model_dump(mode="json"),
        "decoder_activation": settings.decoder_activation,
        "width": settings.width,
        "bias": settings.bias,
        "classes": list(classes),
    }
