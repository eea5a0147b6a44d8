"""Settings of the images: where they are, how they are read and how they are transformed."""

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from uda.core.settings import PathText, Settings, one_or_several


def _expanded(names: str | list[str]) -> str | list[str]:
    return os.path.expanduser(names) if isinstance(names, str) else [os.path.expanduser(name) for name in names]


#: A domain, or several in a list. `~` is expanded.
DomainNames = Annotated[str | list[str], BeforeValidator(one_or_several), AfterValidator(_expanded)]


class ReadingSettings(Settings):
    """The rules by which an image file becomes pixels."""

    load_size: int | None = Field(None, ge=8)
    """Shrink images on reading until the shorter side has this many pixels. Smaller images are not changed. null: no
    image is shrunk."""
    background: str = "white"
    """Colour of the transparent parts of an image: a name, or '#rrggbb'."""
    exif_orientation: Literal["ignore", "apply"] = "ignore"
    """`apply` turns an image by its EXIF orientation. `ignore` does not, as in published results."""
    white_level: float | None = Field(None, gt=0)
    """Value of white in grey images of more than 8 bits, such as 4095 for 12 bits. null: the first level that no value
    exceeds, from 1 and 255 for floats, and from 255, 4095 and 65535 for integers."""

    @field_validator("background")
    @classmethod
    def opaque_colour(cls, value: str) -> str:
        from PIL import ImageColor

        try:
            opaque = len(ImageColor.getrgb(value)) == 3
        except ValueError:
            opaque = False
        if not opaque:
            raise ValueError(f"'{value}' is not an opaque colour; give a name such as white, or '#rrggbb'")
        return value


class StorageSettings(ReadingSettings):
    """Where the images are, and how they are read and cached."""

    dataset: PathText | None = None
    """A card of `--list datasets` (`visda2017`, `pacs`, `digits`...), the path of your own card, or its name in
    datasets/. null: images without a card."""
    root: PathText | None = None
    """Folder of the data. null: $UDA_DATA/<folder of the card>, else datasets/<folder of the card> in the current
    folder."""
    classes: list[str] | PathText | None = None
    """Class names in label order, or a text file with one name per line. They tell what numbers in lists mean. null:
    the sorted class names of the first domain."""
    max_unreadable: float = Field(0.01, ge=0, le=1)
    """Largest share of unreadable images. They are skipped and reported. Above it the run stops before training."""
    cache: Literal["none", "memory", "store"] = "none"
    """Where decoded images are kept. `memory`: in memory, for a few thousand small images. `store`: on disk, for later
    runs too."""
    store: PathText | None = None
    """Folder of the decoded store. null: $UDA_STORE, else uda/ in the user's cache folder."""
    store_gb: float = Field(64.0, gt=0)
    """Largest size of the run's decoded stores together, in GB (10^9 bytes)."""
    features: PathText | None = None
    """A feature bank: the folder that `uda bank` wrote, or one with your own arrays. The run then trains the layers
    after the backbone on these features, and reads no images."""

    @property
    def reading(self) -> ReadingSettings:
        """Only the rules of reading."""
        return ReadingSettings(**self.model_dump(include=set(ReadingSettings.model_fields)))


class DataSettings(StorageSettings):
    """Which images are the source and which the target."""

    source: DomainNames
    """Labelled domain: a domain of the card. Without a card: a folder with one folder per class, or a .txt list. The
    domains of a list are trained on together, and every image is seen equally often."""
    target: DomainNames
    """Unlabelled domain, given like the source. Without a card it may also be any tree of images, or a list of paths
    without labels. The domains of a list are adapted to together, and reported together and separately."""
    target_labels: Literal["auto", "none"] = "auto"
    """`auto`: the target has labels if its folders are the classes. `none`: the target's labels are not read."""
    target_labelled: PathText | None = None
    """Target images whose labels are trained on: a folder with one folder per class, or a .txt list with labels. They
    and their copies are removed from the target, and no accuracy counts them."""
    labelled_per_batch: int = Field(16, ge=1)
    """Number of images of `target_labelled` in every batch, in every stage of every method."""
    label_sets: Literal["closed", "partial", "open", "universal"] = "closed"
    """Classes of the target. `closed`: all classes of the source. `partial`: some of them. `open`: all of them, and
    others. `universal`: some of them, and others. A class that the source lacks counts as unknown, and its images are
    reported separately."""
    target_classes: list[str] | None = None
    """For `partial` and `universal`: the source's classes that the target has. null: they are estimated from the
    predictions, and the classes of `target_labelled` are added."""
    rendered_per_class: int = Field(1000, ge=1)
    """Only for the digits task: number of images of each digit in the domain `rendered`."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The source domains."""
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)

    @property
    def targets(self) -> tuple[str, ...]:
        """The target domains."""
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)

    @property
    def partial(self) -> bool:
        """Whether the target may lack classes of the source."""
        return self.label_sets in ("partial", "universal")

    @property
    def open(self) -> bool:
        """Whether the target may have classes that the source lacks."""
        return self.label_sets in ("open", "universal")

    @model_validator(mode="after")
    def classes_of_a_partial_target(self):
        if self.target_classes is not None and not self.partial:
            raise ValueError("target_classes: needs label_sets=partial or label_sets=universal")
        return self


def _magnitude_or_policy(value: object) -> object:
    """A magnitude of torchvision's RandAugment, or the name of a timm policy."""
    value = int(value) if isinstance(value, str) and value.isdecimal() else value
    policy = isinstance(value, str) and re.fullmatch(r"rand(-((m|n|mmax|inc)\d+|(p|mstd)\d+(\.\d+)?))+", value)
    if not policy and not (isinstance(value, int) and 0 <= value <= 30):
        raise ValueError(f"needs a number from 0 to 30, or a timm policy such as rand-m10-n2-mstd2; got {value!r}")
    return value


class AugmentSettings(Settings):
    """Random changes of the training images of one domain."""

    crop: Literal["resized", "random", "centre"] = "resized"
    """Kind `crop` only. `resized`: a random part by `scale` and `ratio`, resized to the network's size. `random` and
    `centre`: a part of the network's size, after the image is resized as for predicting (`transforms.resize`)."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Kind `crop`: area of the random crop as a share of the image. Kind `affine`: zoom factor."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Kind `crop` only: aspect ratio of the random crop."""
    flip: bool = False
    """Mirror half of the images."""
    degrees: float = Field(0.0, ge=0, le=180)
    """Kind `affine` only: rotation, uniform in +- this many degrees."""
    shear: float = Field(0.0, ge=0, lt=90)
    """Kind `affine` only: shear along x, uniform in +- this many degrees."""
    translate: float = Field(0.0, ge=0, le=1)
    """Kind `affine` only: shift along x and y, uniform in +- this share of the side."""
    whole_pixels: bool = False
    """Kind `affine` only: shift by whole pixels, as a random crop of a padded image does. A shift alone then copies
    values and does not interpolate."""
    jitter: float = Field(0.0, ge=0, le=1)
    """Largest random change of brightness, contrast and (in colour images) saturation, as a share."""
    noise: float = Field(0.0, ge=0)
    """Kind `affine` only: standard deviation of Gaussian noise, for an image in 0..1."""
    rand_augment: Annotated[int | str, BeforeValidator(_magnitude_or_policy)] = 0
    """Kind `crop` only: random operations (RandAugment, Cubuk et al., 2020). A number from 0 to 30: two operations of
    torchvision at that magnitude. 30 is the strongest, and 0 means none. A text such as `rand-m10-n2-mstd2`: the timm
    policy of that name, for colour images. It draws n operations, each done with probability 0.5. Their magnitude is m
    (of 10) with noise of standard deviation mstd."""


class TransformSettings(Settings):
    """How a decoded image becomes the network's input."""

    kind: Literal["crop", "affine"] = "crop"
    """`crop`: a crop and changes of each image. `affine`: a random affine map of each image, for images that already
    have the network's size."""
    size: int = Field(224, ge=8)
    """Side of the network's input in pixels."""
    resize: int = Field(256, ge=8)
    """Kind `crop` only: length of the shorter side before the centre crop when predicting, in pixels."""
    squash: bool = False
    """Kind `crop` only: resize to `resize` x `resize` without keeping the aspect, in training and predicting. The
    centre crop then shows as much of a long image as of a square one. A random resized crop is drawn on that square."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel, for images in 0..1. It is subtracted."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, for images in 0..1. The image is divided by it."""
