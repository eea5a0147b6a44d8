"""Settings of scenes, which are images with label maps: where they are, and how they are transformed."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from uda.core.settings import PathText, Settings
from uda.data.settings import StorageSettings


class SceneDataSettings(StorageSettings):
    """Which scenes are the source and which the target."""

    dataset: PathText | None = None
    """A card of label maps whose domains `source`, `target` and `held_out` name. null: they name the card too, as in
    `cityscapes/train`, or a place of your own."""
    root: PathText | None = None
    """Folder that holds the data sets' folders, in place of $UDA_DATA. If only one card is used, it may be the data
    set's own folder. Your own folders and lists may be named from here too."""
    classes: list[str] | PathText | None = None
    """Class names in label order, or a text file with one name per line. All other classes become void. null: those of
    the source's card. In label maps without a card, the value 0 is the first of them, and 255 is void."""
    source: PathText
    """Labelled domain: `card/domain`, or the card if it has one domain. Without a card: a folder with the folders
    `images` and `labels`, or a .txt list of `image map` lines."""
    target: PathText
    """Unlabelled domain, given like the source. It may also be any tree of images, or a list of images."""
    held_out: PathText | None = None
    """Scenes of the target's kind that are never trained on, given like the target. They are only measured."""
    target_labels: Literal["auto", "none"] = "auto"
    """`auto`: the label maps of the target, if there are any, are used for measuring. `none`: they are not read."""

    @model_validator(mode="after")
    def pixels_only(self):
        if self.features is not None:
            raise ValueError("features: a feature bank holds no pixels; remove it")
        return self


class SceneAugmentSettings(Settings):
    """Random changes of the training scenes of one domain."""

    resize: tuple[int, int] | None = None
    """Height and width that each scene is resized to before anything else. null: `transforms.resize`."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Random zoom factor, uniform. Smaller scenes than the crop are padded: the image with the mean colour, its label
    map with void."""
    flip: bool = False
    """Mirror half of the scenes."""
    jitter: float = Field(0.0, ge=0, le=1)
    """Largest random change of brightness, contrast and (in colour images) saturation, as a share."""
    blur: float = Field(0.0, ge=0, le=1)
    """Share of the images that are blurred, by a Gaussian of a standard deviation of 0.15 to 1.15 pixels."""

    @field_validator("scale")
    @classmethod
    def rising(cls, value):
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"{list(value)}: give two positive numbers in rising order")
        return value

    @field_validator("resize")
    @classmethod
    def positive(cls, value):
        return _size(value)


class SceneTransformSettings(Settings):
    """How a decoded scene becomes the network's input."""

    resize: tuple[int, int] | None = None
    """Height and width that each image is resized to, in training and predicting. null: its own size."""
    crop: tuple[int, int] = (512, 512)
    """Height and width of the random crop in training."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel, for images in 0..1. It is subtracted."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, for images in 0..1. The image is divided by it."""
    source: SceneAugmentSettings = SceneAugmentSettings()
    """Random changes of the source's scenes."""
    target: SceneAugmentSettings = SceneAugmentSettings()
    """Random changes of the target's scenes."""

    @field_validator("resize", "crop")
    @classmethod
    def positive(cls, value):
        return _size(value)

    @model_validator(mode="after")
    def channels(self):
        if len(self.mean) != len(self.std):
            raise ValueError(f"std: {len(self.std)} values, but mean has {len(self.mean)}; give one for each channel")
        return self


def _size(value: tuple[int, int] | None) -> tuple[int, int] | None:
    if value is not None and min(value) < 8:
        raise ValueError(f"{list(value)}: height and width must be at least 8 pixels")
    return value
