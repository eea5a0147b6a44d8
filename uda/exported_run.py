"""A run's network as a file for other programs, with its description, checked on real images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uda.adaptation.config import AdaptationConfig
from uda.core.errors import UserError
from uda.core.files import write_bytes, write_json
from uda.core.version import __version__
from uda.data.domains import load_unlabelled
from uda.data.images import Images
from uda.data.settings import ReadingSettings, TransformSettings
from uda.data.transforms import make_predict
from uda.generalization.config import GeneralizationConfig
from uda.models.exporting import FORMATS, INPUT, OUTPUTS, Outputs, PortableNetwork, exported
from uda.trained_run import TrainedRun
from uda.training.config import RunConfig
from uda.training.records import plain

#: The number of images that an exported model is checked on.
CHECKED = 32

#: The largest difference of an output that is allowed, relative to its largest absolute value (at least 1).
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Check:
    """The comparison of an exported model with the run's network."""

    images: int
    """Number of images."""
    place: str
    """Where they are from."""
    differences: Mapping[str, float]
    """The largest absolute difference of each output."""
    relative: Mapping[str, float]
    """The same, divided by the largest absolute value of the output, or by 1 if that is smaller."""
    other_predictions: int
    """Number of images whose predicted class differs. Only classes of nearly equal logits can differ."""

    def describe(self) -> str:
        """One line for people."""
        shown = ", ".join(f"{name} {value:.2g}" for name, value in self.differences.items())
        return f"{self.images} image{'s' * (self.images != 1)} of {self.place}: largest differences {shown}"


def target_images(config: RunConfig) -> tuple[Images, str]:
    """The images that a run is for, and their name: target, unseen domain or test images. They are not opened.

    Raises UserError if the data is not there.
    """
    if isinstance(config, AdaptationConfig):
        names = config.data.targets
    else:
        names = [config.target if isinstance(config, GeneralizationConfig) else config.data.test]
    return load_unlabelled(config.data, names, config.seed), ", ".join(names)


def check_file_name(out: Path, kind: str) -> None:
    """Raise UserError unless the path has the ending of the format, and the packages of the format are installed."""
    ending = FORMATS[kind].ending
    if out.suffix != ending or out.is_dir():
        raise UserError(f"`out`: {out}: a file of the format {kind} ends in {ending}")
    FORMATS[kind].versions()


def export_run(
    run: TrainedRun,
    kind: str,
    out: Path,
    images: Images | None = None,
    place: str = "the given images",
    log: Callable[[str], None] = print,
) -> Check:
    """Write a run's network as a file, and its description beside it with the ending .json.

    The model takes images (B, C, S, S) in 0..1, resized and cropped. It normalises them itself. The file is read again,
    and its outputs are compared with the run's network on at most `CHECKED` images.

    Args:
        run: the run.
        kind: a name in `FORMATS`.
        out: the file. Its ending is that of the format.
        images: images for the check; None: those that the run is for.
        place: the name of `images` for messages.
        log: gets a line about images that cannot be read.

    Raises:
        UserError: there are no images, the network cannot be exported, the file cannot be written, or an output
            differs by more than `TOLERANCE`. Then nothing is written.
    """
    check_file_name(out, kind)
    reference = TrainedRun(run.folder, _in_full_precision(run.config), "cpu", run.weights)
    network = reference.network_on_images
    if images is None:
        try:
            images, place = target_images(run.config)
        except UserError as error:
            raise UserError(f"{error}; or name other images for the check in `images`") from None
    settings = run.config.transforms
    pixels = _some(images, settings, place, log)
    content = exported(PortableNetwork(network, settings.mean, settings.std), kind, settings.size)
    with torch.inference_mode():
        features, logits = network(make_predict(settings).normalise(pixels))
        outputs = (features, logits, logits.softmax(1))
    expected = {name: values.numpy() for name, values in zip(OUTPUTS, outputs, strict=True)}
    check = _compare(FORMATS[kind].open(content), pixels.float() / 255, expected, place)
    if not max(check.relative.values()) <= TOLERANCE:  # also if a difference is NaN
        raise UserError(
            f"the exported model differs from the run's network on {check.describe()}; relative to the largest value "
            f"at most {TOLERANCE:g} is allowed; try another `format`"
        )
    write_bytes(out, content)
    described = describe(run, kind, out.name, expected)
    write_json(out.with_suffix(".json"), plain({**described, "check": {**vars(check), "tolerance": TOLERANCE}}))
    return check


def describe(run: TrainedRun, kind: str, file: str, outputs: Outputs) -> dict[str, Any]:
    """What a user of an exported model needs to know. `outputs`: arrays with the shapes of the outputs."""
    config = run.config
    transforms = config.transforms
    side, channels = transforms.size, len(transforms.mean)
    shapes = {name: ["batch", *values.shape[1:]] for name, values in outputs.items()}
    return {
        "file": file,
        "format": kind,
        "run": {
            "name": config.name,
            "method": config.method,
            "seed": config.seed,
            "weights": run.weights,
            "folder": str(run.folder),
        },
        "classes": list(run.classes),
        "inputs": [{"name": INPUT, "shape": ["batch", channels, side, side], "type": "float32", "range": [0, 1]}],
        "outputs": [{"name": name, "shape": shape, "type": "float32"} for name, shape in shapes.items()],
        "preprocessing": preprocessing(transforms, config.data.reading),
        "versions": {"uda": __version__, "torch": torch.__version__, **FORMATS[kind].versions()},
    }


def preprocessing(transforms: TransformSettings, reading: ReadingSettings) -> dict[str, Any]:
    """How an image file becomes the model's input: numbers, and steps in words."""
    size, resize, channels = transforms.size, transforms.resize, len(transforms.mean)
    crops = transforms.kind == "crop"
    steps = ["Decode the file to 8 bits per channel, RGB. A grey image has three equal channels."]
    steps.append(f"Blend transparent parts with the colour {reading.background}.")
    if reading.exif_orientation == "apply":
        steps.append("Turn the image as its EXIF orientation says.")
    else:
        steps.append("Ignore the EXIF orientation.")
    if reading.white_level is not None:
        steps.append(f"In a grey image of more than 8 bits, {reading.white_level:g} is white.")
    if reading.load_size is not None:
        steps.append(
            f"If the shorter side is longer than {reading.load_size} pixels, shrink the image to that, bilinear with "
            "antialiasing, to 8 bits."
        )
    if channels == 1:
        steps.append("Turn the image grey: 0.2989 R + 0.587 G + 0.114 B.")
    if not crops:
        steps.append(f"The image must have {size} x {size} pixels. It is not resized.")
    else:
        to = f"to {resize} x {resize} pixels" if transforms.squash else f"until the shorter side has {resize} pixels"
        steps += [f"Resize it {to}, bilinear with antialiasing, to 8 bits.", f"Cut out the centre, {size} x {size}."]
    steps += ["Divide by 255. Order the axes as (batch, channel, row, column). Do not normalise: the model does it."]
    return {
        "steps": steps,
        "colour_order": "RGB" if channels == 3 else "grey" if channels == 1 else f"{channels} channels",
        "resize": resize if crops else None,
        "squash": transforms.squash if crops else None,
        "interpolation": "bilinear, antialiased" if crops else None,
        "size": size,
        "range": [0, 1],
        "normalised_by_the_model": {"mean": list(transforms.mean), "std": list(transforms.std)},
        "reading": reading.model_dump(mode="json"),
    }


def _in_full_precision(config: RunConfig) -> RunConfig:
    """The config for a prediction on the CPU in fp32."""
    changes = {"device": "cpu", "predict_precision": "fp32", "compile": False, "channels_last": False}
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=changes)})


def _some(images: Images, settings: TransformSettings, place: str, log: Callable[[str], None]) -> Tensor:
    """Pixels of at most `CHECKED` images, spread over all of them: uint8 (B, C, S, S)."""
    transform, found, problems = make_predict(settings), [], []
    for number in np.unique(np.linspace(0, len(images) - 1, min(CHECKED, len(images))).round().astype(int)).tolist():
        try:
            found.append(transform.pixels([images.read(number)], [0]))
        except UserError as error:
            problems.append(str(error))
    if not found:
        raise UserError(f"none of the images of {place} can be read for the check; the first one: {problems[0]}")
    if problems:
        counted = f"{len(problems)} image{'s' * (len(problems) != 1)}"
        log(f"warning: {counted} of {place} cannot be read for the check; the first one: {problems[0]}")
    return torch.cat(found)


def _compare(model: Callable[[Tensor], Outputs], images: Tensor, expected: Outputs, place: str) -> Check:
    """Compare the outputs for all images together, and for the first one alone, because a batch may have any size."""
    together, alone = model(images), model(images[:1])
    differences, relative = {}, {}
    for name, values in expected.items():
        largest = max(np.abs(together[name] - values).max(), np.abs(alone[name] - values[:1]).max())
        differences[name] = float(largest)
        relative[name] = float(largest / max(1.0, np.abs(values).max()))
    other = together["logits"].argmax(1) != expected["logits"].argmax(1)
    return Check(len(images), place, differences, relative, int(other.sum()))
