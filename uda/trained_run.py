"""A run, opened: its results, its network, and predictions on other images."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.core.progress import progress as show_progress
from uda.core.registry import nearest
from uda.data.features import PlainFeatures, features_of
from uda.data.given_images import GivenImages, given_features, given_images
from uda.data.images import Images
from uda.data.loaders import predict_batches
from uda.data.transforms import Transform, make_predict
from uda.evaluation.prediction_table import Row, prediction_rows, write_predictions
from uda.kinds import kind_of
from uda.models.feature_maker import backbone_again, check_digest, told_of
from uda.models.network import Network, Prediction, create_network, network_on
from uda.models.weights import load_network, read_description
from uda.selection.selectors import target_scores
from uda.training.config import RunConfig
from uda.training.engine import Engine, generators_restored, seed_everything
from uda.training.records import read_results
from uda.training.stages import INITIAL_WEIGHTS

#: Names of weights that runs keep in `checkpoints/`, in the order in which messages list them.
WEIGHTS = ("final", "label_free", "validation", "source")


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

    def write(self, out: str | Path) -> None:
        """Write the table that `uda predict` writes, as .csv or .parquet. Raises UserError, as `OutputError` does."""
        prediction = Prediction(self.features, self.logits, self.weight)
        write_predictions(Path(os.path.expanduser(out)), self.ids, prediction, self.classes)


class TrainedRun:
    """A finished run, or weights that an unfinished run has saved.

    Args:
        folder: the run's folder.
        config: the run's config.
        device: device of the network; None: `config.runtime.device`.
        weights: name of the weights in `checkpoints/`: one of `WEIGHTS`.
    """

    def __init__(self, folder: str | Path, config: RunConfig, device: str | None = None, weights: str = "final"):
        self.folder = Path(folder).absolute()
        self.config = config
        self.device = device
        self.weights = weights

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
            raise UserError(f"{self.folder} is not a finished run: there is no {path.name}{self._others()}")
        return read_results(path)[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in the order of the logits."""
        return tuple(read_description(self._weights)["classes"])

    @property
    def network(self) -> Network:
        """The network with the run's weights, on its device and in eval mode.

        The network takes normalised images (B, C, S, S) and returns `features` (B, D) and `logits` (B, K). `predict`
        uses the same network. If you change the network, the predictions change. The network of a run on a feature bank
        begins with the backbone that made the bank. If the bank holds arrays of your own, the network takes rows of
        such arrays in place of images, as a tensor (B, width) float32.

        Raises:
            UserError: the weights are missing or do not fit, the device is not available, or the backbone that made the
                bank cannot be made again.
        """
        features = self._features
        return (self._engine if features is None or features["made_by"] else self._engine_on_features).network

    def predict(self, images: GivenImages) -> ImagePredictions:
        """Predict the classes of images. They are resized and normalised as in the run's predictions.

        Args:
            images: a folder (all image files below it, in sorted order), an image file or a list of image files; a PIL
                image or a list of PIL images; an array (N, H, W, C) or a tensor (N, C, H, W), uint8 from 0 to 255 or
                floating from 0 to 1. The images must not be normalised. Of a run on a feature bank, also a file of such
                a bank, or features (N, D), as an array or a tensor of floating numbers.

        Raises:
            UserError: there are no images, an image cannot be read, a floating value is outside of 0..1, the run's
                transform cannot take the size or the channels, or features do not fit the run.
            TypeError, ValueError: `images` is none of these.
        """
        if self._features is not None and isinstance(images, np.ndarray | torch.Tensor) and images.ndim != 4:
            given = given_features(images)
        else:
            given = given_images(images, self.config.data.reading)
        engine, transform = self.engine_for(given)
        batches = math.ceil(len(given) / engine.predict_batch_size)
        workers = min(engine.workers(given.in_memory), batches - 1)  # a single batch needs no worker process
        found = engine.predict_images(given, transform, workers=workers)
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

    def predict_rows(
        self,
        images: Images,
        *,
        batch_size: int | None = None,
        ranks: Ranks | None = None,
        log: Callable[[str], None] | None = None,
    ) -> Iterator[list[Row]]:
        """The rows of the table of predictions, in the images' order, some images at a time.

        An image that cannot be read, or that the run's transform cannot take, has a row with an error. Memory does not
        grow with the number of images.

        Args:
            images: the images, or the features in a file of a bank.
            batch_size: images per batch; None: as in the run's predictions.
            ranks: the processes of a job. Process r predicts each batch whose number is r modulo their number. So the
                batches are those of a single process. Rank 0 gets all rows, and the others get none.
            log: gets lines of progress; None: nothing is shown.

        Raises:
            UserError: memory runs out.
        """
        ranks, classes = ranks or Ranks(), self.classes
        engine, transform = self.engine_for(images)
        size, count = batch_size or engine.predict_batch_size, len(images)
        batches = math.ceil(count / size)
        numbers = np.arange(count)
        if ranks.world > 1:
            numbers = numbers[numbers // size % ranks.world == ranks.rank]
            images = images.take(numbers)
        own = math.ceil(len(numbers) / size)
        read = predict_batches(
            images,
            transform,
            batch_size=size,
            workers=max(0, min(engine.workers(images.in_memory), own - 1)),
            lenient=images.visible,
        )
        if not images.visible:  # features have been checked
            read = ((batch, {}) for batch in engine.delivered(read))
        predicted = engine.predict_each(read, cure=f"lower `batch_size` ({size} now)")
        steps = math.ceil(batches / ranks.world)
        for batch in show_progress(range(steps), "predict", steps, log):
            rows = []
            if batch < own:
                ids = images.ids[batch * size : (batch + 1) * size]
                prediction, problems = next(predicted)
                rows = prediction_rows(ids, prediction, classes, problems)
            if ranks.world == 1:
                yield rows
                continue
            for text in ranks.gather_texts(json.dumps(rows)):
                if ranks.is_main:
                    yield [tuple(row) for row in json.loads(text)]

    def engine_for(self, images: Images) -> tuple[Engine, Transform]:
        """The engine with the run's network for images or for features, and the transform that makes its inputs.

        Raises:
            UserError: features of another width or another network than those that the run was trained on; or images,
                if the backbone cannot be made again.
        """
        given = features_of(images)
        own = self._features
        if not given:
            try:
                return self._engine, make_predict(self.config.transforms)
            except UserError as error:
                if own is None or own["made_by"]:
                    raise
                raise UserError(f"{error}; give a file of such arrays, as .npz, .npy or .parquet") from None
        found = given[0]
        if own is None:
            raise UserError(f"{self.folder} was trained on images, so it cannot predict features; give images")
        known = own["made_by"] and found.made_by
        if found.width != own["width"] or (known and own["made_by"]["digest"] != found.made_by["digest"]):
            here, there = (told_of(*told) for told in ((own["width"], own["made_by"]), (found.width, found.made_by)))
            raise UserError(f"{self.folder} was trained on {here}, but these are {there}")
        return self._engine_on_features, PlainFeatures(found.width)

    @property
    def network_on_images(self) -> Network:
        """The same as `network`. Raises UserError if that takes no images."""
        return self._engine.network

    @property
    def _features(self) -> Mapping[str, Any] | None:
        """`width` and `made_by` of the features that the run was trained on; None: it was trained on images."""
        return read_description(self._weights).get("features")

    @property
    def _weights(self) -> Path:
        file = f"checkpoints/{self.weights}.safetensors"
        if self.weights in self._saved():
            return self.folder / file
        if self.weights == "final":
            raise UserError(f"{self.folder} is not a finished run: there is no {file}{self._others()}")
        near, known = nearest(self.weights, self._saved()), ", ".join(self._saved()) or "none yet"
        raise UserError(f"`weights`: {self.folder} has no weights '{self.weights}'{near} (it has {known})")

    def _saved(self) -> list[str]:
        """The names of the weights that the run has saved."""
        found = {file.stem for file in (self.folder / "checkpoints").glob("*.safetensors")}
        return [*(name for name in WEIGHTS if name in found), *sorted(found - {*WEIGHTS})]

    def _others(self) -> str:
        """What a user may open in an unfinished run, for the end of a message."""
        others = [name for name in self._saved() if name != "final"]
        return f"; `weights` may be {' or '.join(others)}" if others else ""

    @cached_property
    def _engine(self) -> Engine:
        """The engine with the network that takes images."""
        with generators_restored():
            if self._features is None:
                network = _trained_network(self.config, self._weights, len(self.classes))
            else:
                network = self._network_on_features()
                network.backbone = self._backbone(self._features["made_by"])
        return self._engine_of(network)

    @cached_property
    def _engine_on_features(self) -> Engine:
        """The engine with the network that takes features."""
        with generators_restored():
            return self._engine_of(self._network_on_features())

    def _engine_of(self, network: Network) -> Engine:
        runtime = self.config.runtime
        if self.device is not None:
            runtime = runtime.model_copy(update={"device": self.device})
        engine = Engine(network, runtime, log=None)
        engine.network.eval()
        return engine

    def _network_on_features(self) -> Network:
        network = network_on(nn.Flatten(), self._features["width"], self.config.model, len(self.classes))
        load_network(network, self._weights, {})
        return network

    def _backbone(self, told: Mapping[str, Any]) -> nn.Module:
        """The network that made the features of a bank. Raises UserError if it cannot be made again."""
        if "run" in told:
            try:
                network = load_run(
                    told["run"]["folder"], device=self.device, weights=told["run"]["weights"]
                ).network_on_images
            except UserError as error:
                raise UserError(f"{self.folder} was trained on features of another run; {error}") from None
            check_digest(told, network.backbone, network.head)
            return nn.Sequential(network.backbone, network.head)
        if told:
            seed_everything(INITIAL_WEIGHTS, told["seed"])
        return backbone_again(told)


def load_run(folder: str | Path, *, device: str | None = None, weights: str = "final") -> TrainedRun:
    """Open a run by its folder.

    Args:
        folder: the run folder of any kind of run.
        device: device of the network, such as `cpu` or `cuda:1`; None: the config's `runtime.device`.
        weights: `final`, the weights of a finished run; `label_free`, its label-free choice; `source`, the source
            model; `validation`, the choice of a run of domain generalisation. All except `final` may be of an
            unfinished run.

    Raises:
        UserError: the folder does not hold a finished run, it does not have these weights, or its config is from
            another version of uda.
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
    run = TrainedRun(folder, kind.load(file, saved=True), device, weights)
    if weights == "final":
        _ = run.results  # an unfinished run raises here
    _ = run._weights
    return run


def _trained_network(config: RunConfig, weights: Path, num_classes: int) -> Network:
    """Create a config's network and load a run's final weights into it."""
    model = config.model.model_copy(update={"weights": "none"})  # the file has all weights
    network = create_network(model, num_classes, len(config.transforms.mean))
    load_network(network, weights, {})
    return network
