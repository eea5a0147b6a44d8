"""What a run would cost on GPUs that we do not have: an estimate from stated assumptions, nothing of it measured there.

Steps and images come from the config by the rules of `uda.plan`; speeds from `Assumptions`; what rank 0 does alone, and
saving, from curves measured on this machine's processor.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field

from uda.config import Config, load_config
from uda.errors import UserError
from uda.plan import epoch_steps, predicted_images, steps_of_rounds
from uda.settings import Settings

CONFIG = "visda_avh.yaml"


class Assumptions(Settings):
    """What the estimate takes for granted: a GPU of the RTX 3090's class, eight of them in a machine."""

    train_images_per_second: float = Field(700, gt=0)
    """images a second and GPU that training computes, ResNet-101 at 224 pixels, autocast, channels_last; timm's
    published benchmark of the bare network has 748 on an RTX 3090 with batches of 256"""
    predict_images_per_second: float = Field(2000, gt=0)
    """images a second and GPU that a predict pass computes; the same source has 2,246"""
    least_step_seconds: float = Field(0.04, ge=0)
    """seconds that a training step takes however few its images, since over a thousand kernels must be started"""
    gpus_per_machine: int = Field(8, ge=1)
    """GPUs in a machine"""
    bytes_per_gradient: int = Field(4, ge=1)
    """bytes a parameter that the GPUs send each other in a step; sending begins when the backward pass has ended"""
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

    batch: int
    """Images in a training batch of all GPUs."""
    steps: int
    """Training steps of all stages."""
    stages: int
    """Training stages, each followed by a predict pass: the source stage and the rounds."""
    predicted: int
    """Images of all predict passes."""
    num_target: int
    """Target images."""
    parameters: int
    """Parameters of the network."""
    checkpoint_minutes: float
    """Minutes between checkpoints within a stage."""


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
    """Averaging gradients."""
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


def visda_config(batch: int | None = None) -> Config:
    """The recipe's config; `batch`: with so many images in the batches of all stages."""
    changes = [] if batch is None else [f"source.batch_size={batch}", f"self_training.batch.mixed={batch}"]
    return load_config(CONFIG, ["model.weights=none", *changes])


def job_of(config: Config) -> Job:
    """The work that a config asks for, on all images of its dataset's card; no data is needed."""
    from uda.data.cards import load_card
    from uda.models import create_network

    card = load_card(config.data.dataset)
    num_source, num_target = (
        sum(card.domain(name).images for name in names) for names in (config.data.sources, config.data.targets)
    )
    with torch.device("meta"):
        network = create_network(config.model, card.num_classes, len(config.transforms.mean))
    batch = config.self_training.batch.mixed
    if batch != config.source.batch_size:
        raise UserError("the estimate knows one size of batch: source.batch_size = self_training.batch.mixed")
    natural = math.ceil(num_source / batch)
    rounds = config.self_training.rounds
    return Job(
        batch=batch,
        steps=sum(epoch_steps(natural, config.source.epochs, config.source.steps))
        + sum(steps_of_rounds(config, num_source, num_target)),
        stages=1 + rounds,
        predicted=predicted_images(config, rounds, num_target),
        num_target=num_target,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        checkpoint_minutes=config.runtime.checkpoint_minutes,
    )


def estimate(job: Job, gpus: int, given: Assumptions, serial: Serial) -> Cost | None:
    """What a job would cost on so many GPUs; None where a GPU would get fewer than the two images that BatchNorm needs.

    A training step takes images / speed, or the least step; gradients go round a ring, in which every GPU sends
    2 (W - 1) / W of their bytes over the slowest link; images are loaded meanwhile, and what that takes longer is
    waited for.
    """
    if job.batch < 2 * gpus:
        return None
    images = math.ceil(job.batch / gpus)
    step = max(given.least_step_seconds, images / given.train_images_per_second)
    bandwidth = given.bandwidth_within if gpus <= given.gpus_per_machine else given.bandwidth_between
    average = 2 * (gpus - 1) / gpus * job.parameters * given.bytes_per_gradient / (1e9 * bandwidth)
    load = given.decode_seconds / given.cores_per_gpu
    predicted = job.predicted / gpus
    train, gradients = job.steps * step, job.steps * average
    predict = predicted / given.predict_images_per_second
    loading = job.steps * max(0.0, images * load - step - average)
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
