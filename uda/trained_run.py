"""A finished run, opened: its results, its network, and predictions on other images."""

import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

from uda.core.errors import UserError
from uda.data.given_images import GivenImages, given_images
from uda.data.transforms import make_predict
from uda.generalization.config import GeneralizationConfig
from uda.kinds import kind_of
from uda.models.backbones import create_backbone
from uda.models.network import Network, create_network, network_on
from uda.models.weights import load_network, read_description
from uda.selection.selectors import target_scores
from uda.training.config import RunConfig
from uda.training.engine import Engine, generators_restored, seed_everything
from uda.training.records import read_results
from uda.training.stages import INITIAL_WEIGHTS


@dataclass(frozen=True, eq=False, repr=False)
class ImagePredictions:
    """The predictions of a run's network for N images, one row per image."""

    ids: list[str]
    """N names: the paths of image files, or the numbers from 0 for other images."""
    classes: tuple[str, ...]
    """K class names."""
    labels: NDArray[np.int64]
    """(N,) class numbers of the largest logits."""
    probabilities: NDArray[np.float64]
    """(N, K), the softmax of the logits."""
    features: NDArray[np.float32]
    """(N, D), the input of the last layer."""
    logits: NDArray[np.float32]
    """(N, K)."""
    weight: NDArray[np.float32]
    """(K, D), the class weights. `uda.score(features, logits, weight)` computes scores of the images."""

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"ImagePredictions({len(self)} images, {len(self.classes)} classes)"

    @property
    def class_names(self) -> list[str]:
        """The predicted class names, one per image."""
        return [self.classes[label] for label in self.labels]


class TrainedRun:
    """A finished run.

    Args:
        folder: the run's folder.
        config: the run's config.
        device: device of the network; None: `config.runtime.device`.
    """

    def __init__(self, folder: str | Path, config: RunConfig, device: str | None = None):
        self.folder = Path(folder).absolute()
        self.config = config
        self.device = device

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    @cached_property
    def results(self) -> dict[str, Any]:
        """The content of `results.json`. Accuracies are fractions. Figures that need unknown labels are None.

        Raises:
            UserError: the run is not finished, or its records are broken.
        """
        path = self.folder / "results.json"
        if not path.is_file():
            raise UserError(f"{self.folder} is not a finished run: there is no {path.name}")
        return read_results(path)[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in the order of the logits."""
        return tuple(read_description(self._weights)["classes"])

    @property
    def network(self) -> Network:
        """The network with the run's final weights, on its device and in eval mode.

        The network takes normalised images (B, C, S, S) and returns `features` (B, D) and `logits` (B, K). `predict`
        uses the same network. If you change the network, the predictions change.

        Raises:
            UserError: the final weights are missing or do not fit, or the device is not available.
        """
        return self._engine.network

    def predict(self, images: GivenImages) -> ImagePredictions:
        """Predict the classes of images. They are resized and normalised as in the run's predictions.

        Args:
            images: a folder (all image files below it, in sorted order), an image file or a list of image files; a PIL
                image or a list of PIL images; an array (N, H, W, C) or a tensor (N, C, H, W), uint8 from 0 to 255 or
                floating from 0 to 1. The images must not be normalised.

        Raises:
            UserError: there are no images, an image cannot be read, a floating value is outside of 0..1, or the run's
                transform cannot take the size or the channels.
            TypeError, ValueError: `images` is none of these.
        """
        engine = self._engine
        given = given_images(images, self.config.data.reading)
        batches = math.ceil(len(given) / engine.predict_batch_size)
        workers = min(engine.workers(given.in_memory), batches - 1)  # a single batch needs no worker process
        found = engine.predict_images(given, make_predict(self.config.transforms), workers=workers)
        features, logits, weight = map(torch.from_numpy, (found.features, found.logits, found.weight))
        return ImagePredictions(
            ids=list(given.ids),
            classes=self.classes,
            labels=found.logits.argmax(1),
            probabilities=target_scores("softmax", features, logits, weight).numpy(),
            features=found.features,
            logits=found.logits,
            weight=found.weight,
        )

    @property
    def _weights(self) -> Path:
        path = self.folder / "checkpoints" / "final.safetensors"
        if not path.is_file():
            raise UserError(f"{self.folder} is not a finished run: there is no checkpoints/{path.name}")
        return path

    @cached_property
    def _engine(self) -> Engine:
        runtime = self.config.runtime
        if self.device is not None:
            runtime = runtime.model_copy(update={"device": self.device})
        with generators_restored():
            network = _trained_network(self.config, self._weights, len(self.classes))
        engine = Engine(network, runtime, log=None)
        engine.network.eval()
        return engine


def load_run(folder: str | Path, *, device: str | None = None) -> TrainedRun:
    """Open a finished run by its folder.

    Args:
        folder: the run folder of any kind of run.
        device: device of the network, such as `cpu` or `cuda:1`; None: the config's `runtime.device`.

    Raises:
        UserError: the folder does not hold a finished run, or its config is from another version of uda.
    """
    folder = Path(os.path.expanduser(folder))
    file = folder / "config.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run folder: there is no {file.name}") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{file} cannot be read") from None
    kind = kind_of(content)
    if kind is None:
        raise UserError(f"{file} is not the config of a run, or is from another version of uda")
    run = TrainedRun(folder, kind.load(file), device)
    _ = run.results, run._weights  # an unfinished run raises here
    return run


def _trained_network(config: RunConfig, weights: Path, num_classes: int) -> Network:
    """Create a config's network and load a run's final weights into it."""
    channels = len(config.transforms.mean)
    if not (isinstance(config, GeneralizationConfig) and config.training.frozen_backbone):
        model = config.model.model_copy(update={"weights": "none"})  # the file has all weights
        network = create_network(model, num_classes, channels)
        load_network(network, weights, {})
        return network
    # The file has only the layers after the frozen backbone. The backbone is created as in the run.
    seed_everything(INITIAL_WEIGHTS, config.seed)
    backbone, width = create_backbone(config.model.backbone, config.model.weights, channels)
    network = network_on(nn.Flatten(), width, config.model, num_classes)
    load_network(network, weights, {})
    network.backbone = backbone
    return network
