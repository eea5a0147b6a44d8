"""Estimate the cost of a run on GPUs that we do not have, from stated assumptions. Nothing is measured on these GPUs.

The numbers of steps and images come from the config by the rules of `uda.adaptation.work`. Speeds come from
`Assumptions`. The time of rank 0's work and of checkpoints comes from curves measured on this machine's processor.
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
    """The assumptions of the estimate: GPUs of the RTX 3090's class, eight per machine."""

    train_images_per_second: float = Field(700, gt=0)
    """training images per second and GPU: ResNet-101 at 224 pixels, autocast, channels_last. timm's published
    benchmark of the bare network has 748 on an RTX 3090 with batches of 256"""
    predict_images_per_second: float = Field(1200, gt=0)
    """predicted images per second and GPU, in fp32 with TF32 convolutions. timm has 2,288 in half precision. Times
    513 / 905, the ratio of fp32 to half precision in Lambda's benchmark (RTX 3090, training ResNet-50), it is 1,297"""
    least_step_seconds: float = Field(0.04, ge=0)
    """shortest training step in seconds, because over a thousand kernels must be started"""
    hidden_share: float = Field(0.5, ge=0, le=1)
    """share of a training step during which gradients are sent: the backward pass (two thirds of the step) without its
    end"""
    gpus_per_machine: int = Field(8, ge=1)
    """GPUs per machine"""
    bytes_per_gradient: int = Field(4, ge=1)
    """bytes per parameter that the GPUs exchange in a step"""
    bandwidth_within: float = Field(10, gt=0)
    """GB per second between the GPUs of a machine (PCIe 4.0; NVLink is ten times as fast)"""
    bandwidth_between: float = Field(8, gt=0)
    """GB per second between machines (two thirds of a 100 Gbit/s network)"""
    cores_per_gpu: int = Field(8, ge=1)
    """processor cores, and loader processes, per GPU"""
    decode_seconds: float = Field(0.005, ge=0)
    """seconds of a core to read, decode, crop and resize an image"""
    start_seconds: float = Field(120, ge=0)
    """seconds from the command to the first step: starting processes, listing all files, loading weights"""
    pass_seconds: float = Field(3, ge=0)
    """seconds until loader processes return the first batch, in every training stage and every predict pass"""


@dataclass(frozen=True)
class Job:
    """The work of a run."""

    training: tuple[tuple[int, int], ...]
    """Pairs of steps and images per step (of all GPUs): of the source stage, and of the later stages, if any."""
    stages: int
    """Training stages, each followed by a predict pass: the source stage, and rounds or reports."""
    predicted: int
    """Number of images of all predict passes."""
    num_target: int
    """Number of target images."""
    parameters: int
    """Number of parameters of the network."""
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
    """Seconds of work that GPUs do not speed up, measured on this machine."""

    choice: Callable[[float], float]
    """Seconds of a round's choice, by the number of images."""
    alone: Callable[[float], float]
    """Seconds of rank 0's work in a round, by the number of images."""
    save: float
    """Seconds to save a checkpoint."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a whole run, by kind of work."""

    train: float
    """Forward, backward and update."""
    gradients: float
    """Waiting for gradients: the time of sending that is longer than the simultaneous backward pass."""
    predict: float
    """Predict passes."""
    loading: float
    """Waiting for images: the time of loading that is longer than the simultaneous computation."""
    serial: float
    """The choice of each round, rank 0's work and checkpoints."""
    starts: float
    """Start-up of the job and of loader processes."""

    @property
    def total(self) -> float:
        """Seconds of all kinds of work."""
        return self.train + self.gradients + self.predict + self.loading + self.serial + self.starts


def visda_config(batch: int | None = None) -> AdaptationConfig:
    """The recipe's config. `batch`: number of images in the batches of all stages; None: the recipe's."""
    changes = [] if batch is None else [f"source.batch_size={batch}", f"self_training.batch.mixed={batch}"]
    return AdaptationConfig.load(CONFIG, ["model.weights=none", *changes])


def job_of(config: AdaptationConfig) -> Job:
    """The work of a config with all images of its card. No data is needed."""
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
    """Whether a step is one forward and one backward pass. The estimate supports only such steps."""
    return ADAPTATION_METHODS[config.method].step is Method.step


def estimate(job: Job, gpus: int, given: Assumptions, serial: Serial) -> Cost | None:
    """The estimated cost of a job; None if a GPU would get fewer than two images, which BatchNorm needs.

    A training step takes images / speed, but at least the shortest step. Gradients are sent in a ring, in which each of
    W GPUs sends 2 (W - 1) / W of their bytes over the slowest link. They are sent during a share of the step, and the
    step waits for the rest. Images are loaded at the same time. If loading takes longer than step and gradients, the
    step waits for it too.
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
    # Two checkpoints per stage: after the training, and after the report.
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
    """A card with published speeds: images per second in training ResNet-50."""

    name: str
    half: float
    """Images per second in half precision (autocast)."""
    full: float
    """Images per second in fp32, with TF32 if the card has it."""
    computes_bf16: bool = True
    """Whether `runtime.precision=auto` is bf16 on this card, not fp32."""

    def assumptions(self, precision: str) -> Assumptions:
        """The assumptions for this card. The speeds are those of the RTX 3090, scaled by the published speeds."""
        default = Assumptions()
        train = self.full if precision == "fp32" else self.half
        return default.model_copy(
            update={
                "train_images_per_second": default.train_images_per_second * train / RTX_3090.half,
                "predict_images_per_second": default.predict_images_per_second * self.full / RTX_3090.full,
            }
        )


# Lambda's PyTorch benchmark (github.com/lambdal/deeplearning-benchmark, pytorch/csv_v1_v2/pytorch-train-throughput-fp16
# and -fp32.csv). The T4 is not in this benchmark. Its figures are the V100's, scaled by the inference speeds with
# batches of 256 in NVIDIA's README of ResNet-50 v1.5 for PyTorch (github.com/NVIDIA/DeepLearningExamples):
# 1,198 / 3,382 in mixed precision, 415 / 1,261 in fp32.
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
