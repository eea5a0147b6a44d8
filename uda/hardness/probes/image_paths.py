"""The paths of images from one class to another, with the classifier's scores at each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from uda.core.errors import UserError
from uda.core.progress import progress
from uda.core.registry import nearest
from uda.data.loaders import predict_batches
from uda.data.transforms import make_predict
from uda.hardness.probes.pgd import Attack, lengths, pgd
from uda.hardness.probes.pixels import Pixels
from uda.hardness.scoring.classifier import LoadedClassifier
from uda.hardness.scoring.images import LabelledImages, engine_for
from uda.hardness.scoring.scores import compute_scores
from uda.models.network import Prediction
from uda.training.settings import RuntimeSettings

#: Images in a batch. A gradient needs several times the memory of a predict pass.
AT_ONCE = 16
#: Scores of one class: name in SCORES and name in rows.
OF_A_CLASS = {"avh": "avh", "angle": "angle", "confidence": "p"}


@dataclass(frozen=True)
class Paths:
    """The paths of N images from one class to another, in T steps. Step 0 is the image itself."""

    model: str
    classes: tuple[str, ...]
    source: int
    target: int
    ids: tuple[str, ...]
    attack: Attack
    values: dict[str, np.ndarray]
    """Arrays (T + 1, N) by name: avh, angle and p (softmax) with `_from` and `_to`, norm (|x|), l2 and linf (size of
    the change)."""
    predicted: np.ndarray
    """(T + 1, N) class numbers."""
    frames: np.ndarray
    """The first image at each step, (T + 1, S, S, C) in 0..1."""


#: With more classes than this, a message has their number in place of their names.
MOST_NAMED = 20


def find_class(name: str, classes: Sequence[str], option: str) -> int:
    """The number of a class. Raises UserError with the nearest name if the class is unknown."""
    if name not in classes:
        known = ", ".join(classes) if len(classes) <= MOST_NAMED else f"{len(classes)} classes"
        raise UserError(f"{option}: unknown class '{name}'{nearest(name, list(classes))} ({known})")
    return list(classes).index(name)


def choose(
    classifier: LoadedClassifier,
    data: LabelledImages,
    source: int,
    count: int = 1,
    image: str | None = None,
    seed: int = 0,
    runtime: RuntimeSettings | None = None,
    log: Callable[[str], None] | None = print,
) -> LabelledImages:
    """Choose images of a class that the classifier classifies correctly.

    Args:
        classifier: the classifier.
        data: images, with labels in the classifier's order of classes.
        source: number of the class.
        count: number of images to draw.
        image: id of an image to use in place of a draw.
        seed: seed of the draw.
        runtime: device and precision.
        log: called with a line if there are fewer images than `count`.

    Raises:
        UserError: no image of the class is classified correctly, or `image` is unknown or of another class.
    """
    name = data.classes[source]
    if count < 1:
        raise UserError(f"`count`: {count}: must be at least 1")
    if image is not None:
        if count != 1:
            raise UserError(f"`image` names one image, but `count` is {count}; give only one of them")
        if image not in data.images.ids:
            raise UserError(f"`image`: no image '{image}'{nearest(image, list(data.images.ids))}")
        own = np.array([list(data.images.ids).index(image)])
        label = data.labels[own[0]]
        if label != source:
            raise UserError(f"`image`: {image} is of class '{data.classes[label]}', not of `source` '{name}'")
    else:
        own = np.random.default_rng(seed).permutation(np.flatnonzero(data.labels == source))
    if not len(own):
        raise UserError(f"`source`: the data have no image of class '{name}'")
    chosen = data.take(own)
    engine = engine_for(classifier, runtime, log)
    seen = engine.predict_images(chosen.images, make_predict(classifier.transforms), label="trajectory, candidates")
    predicted = seen.logits.argmax(1)
    right = np.flatnonzero(predicted == source)
    if not len(right):
        what = f"{image} is classified as '{data.classes[predicted[0]]}'" if image else f"none of {len(own)} images is"
        raise UserError(f"`source`: {classifier.name} must classify '{name}' correctly, but {what}; choose another")
    if len(right) < count and log is not None:
        log(f"only {len(right)} of {len(own)} images of class '{name}' are classified correctly; these are used")
    return chosen.take(right[:count])


def follow(
    classifier: LoadedClassifier,
    data: LabelledImages,
    source: int,
    target: int,
    attack: Attack,
    runtime: RuntimeSettings | None = None,
    log: Callable[[str], None] | None = print,
) -> Paths:
    """Move images of class `source` to class `target` and record the scores at each step.

    Args:
        classifier: the classifier to attack.
        data: the images, with labels in the classifier's order of classes.
        source, target: class numbers.
        attack: the attack. Its missing values are set by `Attack.settled`.
        runtime: device. Gradients are computed in fp32.
        log: called with lines of progress.
    """
    engine = engine_for(classifier, runtime, log)
    pixels = Pixels(classifier.transforms, engine.device)
    transform = make_predict(classifier.transforms)
    attack = attack.settled(transform.channels * transform.size**2)
    weight = classifier.network.weight.detach().float().cpu().numpy()
    found: dict[str, list[list[np.ndarray]]] = {}
    predicted, frames = [], None
    batches = predict_batches(data.images, transform, batch_size=AT_ONCE, workers=0)
    for inputs in progress(batches, "trajectory", len(batches), log):
        images = pixels.of(inputs.to(engine.device, memory_format=engine.memory_format))
        steps: dict[str, list[np.ndarray]] = {}
        answers, looks = [], []
        for moved, output in pgd(classifier.network, pixels, images, target, attack):
            prediction = Prediction(output.features.cpu().numpy(), output.logits.cpu().numpy(), weight)
            values = {"norm": compute_scores(prediction, np.full(len(images), source), ["norm"])["norm"]}
            for end, label in (("from", source), ("to", target)):
                scores = compute_scores(prediction, np.full(len(images), label), list(OF_A_CLASS))
                values |= {f"{OF_A_CLASS[name]}_{end}": own for name, own in scores.items()}
            values |= {norm: lengths(moved - images, norm).cpu().numpy() for norm in ("l2", "linf")}
            for name, own in values.items():
                steps.setdefault(name, []).append(own)
            answers.append(prediction.logits.argmax(1))
            if frames is None:
                looks.append(moved[0].permute(1, 2, 0).cpu().numpy())
        frames = np.stack(looks) if frames is None else frames
        predicted.append(np.stack(answers))
        for name, own in steps.items():
            found.setdefault(name, []).append(np.stack(own))
    joined = {name: np.concatenate(parts, axis=1).astype(np.float64) for name, parts in found.items()}
    return Paths(
        classifier.name, data.classes, source, target, tuple(data.images.ids), attack, joined,
        np.concatenate(predicted, axis=1), frames,
    )  # fmt: skip
