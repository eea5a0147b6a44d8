"""The network that made the features of a bank: its description, a check of it, and the network itself, made again."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from uda.core.errors import UserError
from uda.data.settings import TransformSettings
from uda.models.backbones import create_backbone
from uda.models.settings import ModelSettings


def made_by(settings: ModelSettings, transforms: TransformSettings) -> dict[str, object]:
    """What determines the features of an image, besides the weights themselves, for a bank."""
    used = {"kind", "size", "resize", "squash", "mean", "std"}
    return {
        "backbone": settings.backbone,
        "weights": settings.weights,
        "transform": transforms.model_dump(mode="json", include=used),
    }


def check_made_by(told: Mapping[str, Any], settings: ModelSettings, transforms: TransformSettings) -> None:
    """Raise UserError if a bank was made with another backbone or transform. A user's own arrays tell none."""
    wanted = made_by(settings, transforms)
    if "run" not in told:
        for key in ("backbone", "weights"):
            if told.get(key, wanted[key]) != wanted[key]:
                raise UserError(
                    f"data.features: the bank was made with model.{key}={told[key]}, but the config has {wanted[key]}; "
                    f"set model.{key}={told[key]}, or make another bank"
                )
    for key, value in told.get("transform", {}).items():
        if value != wanted["transform"].get(key, value):
            raise UserError(
                f"data.features: the bank was made with transforms.{key}={value}, but the config has "
                f"{wanted['transform'][key]}; set transforms.{key}={value}, or make another bank"
            )


def told_of(width: int, made_by: Mapping[str, Any]) -> str:
    """Features in words, `features of resnet50 (1f0c2a6b)`: the backbone and the digest of its weights."""
    if not made_by:
        return f"features of width {width}"
    network = "/".join(Path(made_by["run"]["folder"]).parts[-2:]) if "run" in made_by else made_by["backbone"]
    return f"features of {network} ({made_by['digest'][:8]})"


def weights_digest(*modules: nn.Module) -> str:
    """Digest of the weights of modules, one after the other. Their devices and memory formats do not matter."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def backbone_again(told: Mapping[str, Any]) -> nn.Module:
    """The backbone that made the features of a bank. Random weights are drawn from torch's global generator.

    Raises UserError if the bank holds a user's own arrays, the features of a run, or those of other weights than the
    backbone has now.
    """
    if not told:
        raise UserError(
            "the run was trained on arrays of your own, and uda does not have the model that made them, so its network "
            "takes no images"
        )
    if "run" in told:
        raise UserError(f"the run was trained on features of another run, {told['run']['folder']}")
    backbone, _ = create_backbone(told["backbone"], told["weights"], len(told["transform"]["mean"]))
    check_digest(told, backbone)
    return backbone


def check_digest(told: Mapping[str, Any], *modules: nn.Module) -> None:
    """Raise UserError unless these modules have the weights that made the features of a bank."""
    if weights_digest(*modules) != told["digest"]:
        network = told["run"]["folder"] if "run" in told else f"{told['backbone']} (model.weights={told['weights']})"
        raise UserError(
            f"the run was trained on features of {network}, whose weights are others now, so images cannot be "
            "predicted; give a file of the bank in place of images"
        )
