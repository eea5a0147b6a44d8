"""What a run would cost on GPUs that we do not have: an estimate from stated assumptions, nothing of it measured there.

Steps and images come from the config by the rules of `uda.adaptation.work`. Speeds come from `Assumptions`. What rank 0
does alone, and saving, come from curves measured on this machine's processor.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from pydantic import Field

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.adaptation.work import work_of
from uda.core.settings import Settings
from uda.models.settings import ModelSettings
from uda.training.method import Method

CONFIG = "visda_avh.yaml"


class Assumptions(Settings):
    """What the estimate takes for granted: a GPU of the RTX 3090's class, eight of them in a machine."""

    train_images_per_second: float = Field(700, gt=0)
    """images a second and GPU that training computes, ResNet-101 at 224 pixels, autocast, channels_last; timm's
    published benchmark of the bare network has 748 on an RTX 3090 with batches of 256"""
    predict_images_per_second: float = Field(1200, gt=0)
    """images a second and GPU that a predict pass computes, in fp32 with TF32 convolutions; ours, from timm's 2,288 in
    half precision and 513 / 905, what fp32 is of it on an RTX 3090 in Lambda's benchmark (training ResNet-50): 1,297"""
    least_step_seconds: float = Field(0.04, ge=0)
    """seconds that a training step takes however few its images, since over a thousand kernels must be started"""
    hidden_share: float = Field(0.5, ge=0, le=1)
    """share of a training step that gradients travel beside: the backward pass, two thirds of it, less its end"""
    gpus_per_machine: int = Field(8, ge=1)
    """GPUs in a machine"""
    bytes_per_gradient: int = Field(4, ge=1)
    """bytes a parameter that the GPUs send each other in a step"""
    bandwidth_within: float = Field(10, gt=0)
    """GB a second between the GPUs of a machine (PCIe 4.0; NVLink is ten times as fast)"""
    bandwidth_between: float = Field(8, gt=0)
    """GB a second between machines (a 100 Gbit/s network, two thirds of it used)"""
    cores_per_gpu: int = Field(8, ge=1)
    """processor cores, and loader processes, for each GPU"""
    decode_seconds: float = Field(0.005, ge=0)
    """seconds in which a core reads, decodes, crops and resizes an image"""
    start_seconds: float = Field(120, ge=0)
    """seconds from the command to the first step: processes, a look at all files, weights"""
    pass_seconds: float = Field(3, ge=0)
    """seconds until loader processes give a first batch, in every training stage and every predict pass"""


@dataclass(frozen=True)
class Job:
    """What there is to do."""

    training: tuple[tuple[int, int], ...]
    """Of the source stage and of what comes after it, where there is one: steps, and images in a step of all GPUs."""
    stages: int
    """Training stages, each followed by a predict pass: the source stage, and rounds or reports."""
    predicted: int
    """Images of all predict passes."""
    num_target: int
    """Target images."""
    parameters: int
    """Parameters of the network."""
    checkpoint_minutes: float
    """Minutes between checkpoints within a stage."""

    @property
    def steps(self) -> int:
        """Training steps of all stages."""
        return sum(steps for steps, _ in self.training)

    @property
    def batch(self) -> int:
        """Images in the smallest batch."""
        return min(images for _, images in self.training)


@dataclass(frozen=True)
class Serial:
    """What was measured on this machine: seconds of what GPUs do not speed up."""

    choice: Callable[[float], float]
    """Seconds of a round's choice among so many images."""
    alone: Callable[[float], float]
    """Seconds of rank 0's work in a round on so many images."""
    save: float
    """Seconds to save a checkpoint."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a whole run, by what they are spent on."""

    train: float
    """Forward, backward and update."""
    gradients: float
    """Waiting for gradients: what sending takes beyond the backward pass that it runs beside."""
    predict: float
    """Predict passes."""
    loading: float
    """Waiting for images: what loading takes beyond the computation that it runs beside."""
    serial: float
    """The choice of each round, rank 0's work and checkpoints."""
    starts: float
    """Start-up, of the job and of loader processes."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.train + self.gradients + self.predict + self.loading + self.serial + self.starts


def visda_config(batch: int | None = None) -> AdaptationConfig:
    """The recipe's config; `batch`: with so many images in the batches of all stages."""
    changes = [] if batch is None else [f"source.batch_size={batch}", f"self_training.batch.mixed={batch}"]
    return AdaptationConfig.load(CONFIG, ["model.weights=none", *changes])


def job_of(config: AdaptationConfig) -> Job:
    """The work that a config asks for, on all images of its dataset's card; no data is needed."""
    from uda.data.cards import load_card

    card = load_card(config.data.dataset)
    num_source, num_target = (
        sum(card.domain(name).images for name in names) for names in (config.data.sources, config.data.targets)
    )
    work = work_of(config, num_source, num_target)
    training = ((work.source_steps, work.source_images), (work.later_steps, work.later_images))
    return Job(
        training=tuple((steps, images) for steps, images in training if steps),
        stages=bool(work.source_steps) + work.reports,
        predicted=work.predicted,
        num_target=num_target,
        parameters=_parameters(config.model.model_dump_json(), card.num_classes, len(config.transforms.mean)),
        checkpoint_minutes=config.runtime.checkpoint_minutes,
    )


@cache
def _parameters(model: str, num_classes: int, channels: int) -> int:
    from uda.models.network import create_network

    settings = ModelSettings.model_validate_json(model).model_copy(update={"weights": "none"})
    with torch.device("meta"):
        network = create_network(settings, num_classes, channels)
    return sum(parameter.numel() for parameter in network.parameters())


def updates_once(config: AdaptationConfig) -> bool:
    """Whether a step is one forward and one backward pass, which is what the estimate knows."""
    return ADAPTATION_METHODS[config.method].step is Method.step


def estimate(job: Job, gpus: int, given: Assumptions, serial: Serial) -> Cost | None:
    """What a job would cost on so many GPUs; None where a GPU would get fewer than the two images that BatchNorm needs.

    A training step takes images / speed, or the least step. Gradients go round a ring, in which every GPU sends
    2 (W - 1) / W of their bytes over the slowest link. They travel beside a share of the step; what they take longer is
    waited for. Images are loaded meanwhile; what that takes longer than step and gradients is waited for too.
    """
    if job.batch < 2 * gpus:
        return None
    bandwidth = given.bandwidth_within if gpus <= given.gpus_per_machine else given.bandwidth_between
    sending = 2 * (gpus - 1) / gpus * job.parameters * given.bytes_per_gradient / (1e9 * bandwidth)
    load = given.decode_seconds / given.cores_per_gpu
    train = gradients = loading = 0.0
    for steps, of_all in job.training:
        images = math.ceil(of_all / gpus)
        step = max(given.least_step_seconds, images / given.train_images_per_second)
        waiting = max(0.0, sending - given.hidden_share * step)
        train, gradients = train + steps * step, gradients + steps * waiting
        loading += steps * max(0.0, images * load - step - waiting)
    predicted = job.predicted / gpus
    predict = predicted / given.predict_images_per_second
    loading += max(0.0, predicted * load - predict)
    # Two checkpoints a stage: when it is trained, and when its report is written.
    saved = 2 * job.stages
    if job.checkpoint_minutes:
        saved += (train + gradients) / (60 * job.checkpoint_minutes)
    return Cost(
        train=train,
        gradients=gradients,
        predict=predict,
        loading=loading,
        serial=(job.stages - 1) * serial.choice(job.num_target / gpus)
        + job.stages * serial.alone(job.num_target)
        + saved * serial.save,
        starts=given.start_seconds + 2 * job.stages * given.pass_seconds,
    )


@dataclass(frozen=True)
class Gpu:
    """A card by the speed that others have measured on it: images a second in training ResNet-50."""

    name: str
    half: float
    """In half precision (autocast)."""
    full: float
    """In fp32, with TF32 where the card has it."""
    computes_bf16: bool = True
    """Whether `runtime.precision=auto` is bf16 there, not fp32."""

    def assumptions(self, precision: str) -> Assumptions:
        """The estimate's, with the speeds of this card: those of the RTX 3090 in proportion."""
        default = Assumptions()
        train = self.full if precision == "fp32" else self.half
        return default.model_copy(
            update={
                "train_images_per_second": default.train_images_per_second * train / RTX_3090.half,
                "predict_images_per_second": default.predict_images_per_second * self.full / RTX_3090.full,
            }
        )


# Lambda's PyTorch benchmark (github.com/lambdal/deeplearning-benchmark, pytorch/csv_v1_v2/pytorch-train-throughput-fp16
# and -fp32.csv). The T4 is not in it: the V100's figures times what NVIDIA's README of ResNet-50 v1.5 for PyTorch
# (github.com/NVIDIA/DeepLearningExamples) has in inference at batches of 256: 1,198 of 3,382 in mixed precision, 415 of
# 1,261 in fp32.
RTX_3090 = Gpu("RTX 3090", 905, 513)
CARDS = (
    Gpu("T4 16 GB", 833 * 1198 / 3382, 369 * 415 / 1261, computes_bf16=False),
    Gpu("V100 16 GB", 833, 369, computes_bf16=False),
    RTX_3090,
    Gpu("RTX 4090", 1301, 721),
    Gpu("A100 40 GB PCIe", 1396, 882),
    Gpu("A100 80 GB SXM4", 1582, 1066),
    Gpu("H100 80 GB PCIe", 1976, 1248),
    Gpu("H100 80 GB SXM5", 2791, 1895),
)
