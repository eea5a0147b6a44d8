"""Settings of images: where they are, how they are read and transformed."""

import os
import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from uda.core.settings import PathText, Settings


def _one_or_several(value: object) -> object:
    """A name, or a list of different names, with `~` as in a path. A union of types would name them in its errors."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"give a name, or several in a list; got {value!r}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is named twice")
    expanded = [os.path.expanduser(name) for name in names]
    return expanded[0] if isinstance(value, str) else expanded


#: A domain, or several in a list.
DomainNames = Annotated[str | list[str], BeforeValidator(_one_or_several)]


class ReadingSettings(Settings):
    """The rules by which an image file becomes pixels."""

    load_size: int | None = Field(None, ge=8)
    """Shrink images in reading until the shorter side is this long (a smaller one stays as it is); null: none."""
    background: str = "white"
    """Colour under the transparent parts of an image: a name, or '#rrggbb'. White, as pages on which they are shown."""
    exif_orientation: Literal["ignore", "apply"] = "ignore"
    """`apply` turns an image as its EXIF orientation says; `ignore` reads it as published numbers did."""
    white_level: float | None = Field(None, gt=0)
    """White in grey images of more than 8 bits, such as 4095 for 12 bits; null: 1 or 255 for floats, 255, 4095 or 65535
    for integers, the first that no value exceeds."""

    @field_validator("background")
    @classmethod
    def opaque_colour(cls, value: str) -> str:
        from PIL import ImageColor

        try:
            opaque = len(ImageColor.getrgb(value)) == 3
        except ValueError:
            opaque = False
        if not opaque:
            raise ValueError(f"'{value}' is no opaque colour; give a name such as white, or '#rrggbb'")
        return value


class StorageSettings(ReadingSettings):
    """Where images lie, and how they are read and kept."""

    dataset: PathText | None = None
    """A card of `--list datasets` (`visda2017`, `pacs`, `digits`...), a card of your own by its path or by its name in
    datasets/, or null for images of your own."""
    root: PathText | None = None
    """Where the data lies; null: $UDA_DATA/<folder of the card>, else datasets/<folder of the card> in the current
    folder."""
    classes: list[str] | PathText | None = None
    """Class names in label order, or a text file with a name a line: what numbers in lists mean; null: the first
    domain's, sorted."""
    max_unreadable: float = Field(0.01, ge=0, le=1)
    """Share of unreadable images that is skipped and reported; above it the run stops before training."""
    cache: Literal["none", "memory", "store"] = "none"
    """Keep decoded images: in `memory`, for some thousand small ones; or in a `store` on disk, for later runs too."""
    store: PathText | None = None
    """Folder of the decoded store; null: $UDA_STORE, else uda/ in the user's cache folder."""
    store_gb: float = Field(64.0, gt=0)
    """Most that the run's decoded stores may take, in GB (10^9 bytes)."""

    @property
    def reading(self) -> ReadingSettings:
        """The rules of reading alone."""
        return ReadingSettings(**self.model_dump(include=set(ReadingSettings.model_fields)))


class DataSettings(StorageSettings):
    """Which images are the source and which the target."""

    source: DomainNames
    """Labelled domain: a domain of the card; without a card a folder with one folder per class, or a .txt list. Several
    in a list are trained on together, an image of each as often as any other."""
    target: DomainNames
    """Unlabelled domain, given in the same way; without a card any tree of images or a list of bare paths too.
    Several in a list are adapted to together, and reported together and apart."""
    target_labels: Literal["auto", "none"] = "auto"
    """`auto`: the target has labels if its folders are the classes; `none`: none, whatever its folders are called."""
    target_labelled: PathText | None = None
    """Target images whose labels are trained on: a folder with one folder per class, or a .txt list with labels. No
    accuracy counts them; those that the target holds too, copies among them, are taken out of it."""
    labelled_per_batch: int = Field(16, ge=1)
    """So many of them are in every batch, in every stage of every method."""
    label_sets: Literal["closed", "partial", "open", "universal"] = "closed"
    """Classes of the target: the source's (`closed`), some of them (`partial`), others too (`open`), or both
    (`universal`). A class that the source lacks counts as unknown; its images are reported apart."""
    target_classes: list[str] | None = None
    """`partial` and `universal`: the source's classes that the target has; null: estimated from the predictions, and
    those of `target_labelled`."""
    rendered_per_class: int = Field(1000, ge=1)
    """Digits task only: how many images of each digit the source domain draws."""

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
            raise ValueError("target_classes: goes with label_sets=partial or label_sets=universal")
        return self


def _magnitude_or_policy(value: object) -> object:
    """A magnitude of torchvision's RandAugment, or the name of a policy of timm's."""
    value = int(value) if isinstance(value, str) and value.isdecimal() else value
    policy = isinstance(value, str) and re.fullmatch(r"rand(-((m|n|mmax|inc)\d+|(p|mstd)\d+(\.\d+)?))+", value)
    if not policy and not (isinstance(value, int) and 0 <= value <= 30):
        raise ValueError(f"needs a number of 0 to 30, or a policy of timm's such as rand-m10-n2-mstd2; got {value!r}")
    return value


class AugmentSettings(Settings):
    """Random changes of a training image, one domain's."""

    crop: Literal["resized", "random", "centre"] = "resized"
    """`crop`: `resized`: a random part by `scale` and `ratio`, brought to the network's size. `random`, `centre`: a
    part of that size, of the image resized as for predicting (`transforms.resize`)."""
    scale: tuple[float, float] = (1.0, 1.0)
    """`crop`: area of the random crop as a share of the image; `affine`: zoom factor."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """`crop`: aspect ratio of the random crop."""
    flip: bool = False
    """Mirror half of the images."""
    degrees: float = Field(0.0, ge=0, le=180)
    """`affine`: rotation, uniform in +- this many degrees."""
    shear: float = Field(0.0, ge=0, lt=90)
    """`affine`: shear along x, uniform in +- this many degrees."""
    translate: float = Field(0.0, ge=0, le=1)
    """`affine`: shift along x and y, uniform in +- this share of the side."""
    whole_pixels: bool = False
    """`affine`: shift by whole pixels, as a random crop of a padded image does: values are copied, not interpolated."""
    jitter: float = Field(0.0, ge=0, le=1)
    """Brightness, contrast (and for colour images saturation) changed by up to this share."""
    noise: float = Field(0.0, ge=0)
    """`affine`: standard deviation of Gaussian noise, in units of the 0..1 image."""
    rand_augment: Annotated[int | str, BeforeValidator(_magnitude_or_policy)] = 0
    """`crop`: operations drawn at random (RandAugment, Cubuk et al., 2020). A number, 0 to 30: two of torchvision's at
    that magnitude, 30 is the strongest; 0: none. A text, such as `rand-m10-n2-mstd2`: timm's policy of that name, for
    colour images: n operations, each done with probability 0.5, at magnitude m of 10 with noise of deviation mstd."""


class TransformSettings(Settings):
    """From a decoded image to the tensor that the network sees."""

    kind: Literal["crop", "affine"] = "crop"
    """`crop`: random resized crop, image by image; `affine`: one random affine map an image, a batch at a time."""
    size: int = Field(224, ge=8)
    """Side of the network's input in pixels."""
    resize: int = Field(256, ge=8)
    """Shorter side before the centre crop when predicting (`crop` only)."""
    squash: bool = False
    """Resize to `resize` x `resize`, whatever the aspect, in predicting and in training (`crop` only). The centre crop
    then sees as much of a long image as of a square one. A random resized crop is drawn on that square."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean that is subtracted, a channel (of images in 0..1)."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation that is divided by, a channel."""


class PairTransformSettings(TransformSettings):
    """The same for a source and a target domain."""

    source: AugmentSettings = AugmentSettings()
    """Augmentation of source images in training."""
    target: AugmentSettings = AugmentSettings()
    """Augmentation of target images in training (predicting never augments)."""
