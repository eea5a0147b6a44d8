"""Training step and predict pass against bare PyTorch loops on the same batches, with data in memory.

There are two floors. The tuned loop (`train_<network>_<precision>_<format>`) has the same settings as ours, so the
ratio is our overhead. The plain loop (`..._vs_plain`) is a simple loop: fp32, torch's default memory format and
malloc's default settings. It runs against our default settings, so the ratio is the gain of a user. torch.compile runs
against a tuned eager loop.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from benchmarks.contest import BENCHMARKS, Contest, at_first_call
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.settings import BatchSettings, PairTransformSettings, SelfTrainingSettings
from uda.data.settings import DataSettings
from uda.models.settings import ModelSettings
from uda.training.settings import OptimSettings, RuntimeSettings

if TYPE_CHECKING:
    from uda.core.distributed import Ranks
    from uda.data.batch import Batch

#: The smallest ratio of a training step and a predict pass: at most 3 % slower than a bare loop.
LOOP_BAR = 0.97
NUM_CLASSES = 10
#: Share of the work in bf16, because CPUs without native bf16 emulate it at a ninth of the speed.
BF16_SHARE = 0.2

PLAIN = RuntimeSettings(device="cpu", precision="fp32", channels_last=False, fused=False, allocator="default")
AUTOMATIC = RuntimeSettings(device="cpu")


@dataclass(frozen=True)
class Subject:
    """A network, its images, and the amount of work of a full benchmark."""

    backbone: str
    channels: int
    size: int
    half_batch: int
    """Number of source images, and of target images, in a training batch."""
    steps: int
    """Training steps in a call."""
    count: int
    """Images in a predict pass."""

    def scaled(self, scale: float) -> "Subject":
        """The subject with a share of the work: fewer steps and images, and smaller batches for a share below 0.1."""
        return Subject(
            self.backbone,
            self.channels,
            self.size,
            max(2, round(self.half_batch * min(1, 10 * scale))),
            max(1, round(self.steps * scale)),
            max(2, round(self.count * scale)),
        )

    def config(self, runtime: RuntimeSettings) -> AdaptationConfig:
        """The config of a self-training run with this network."""
        channels = self.channels
        return AdaptationConfig(
            name="bench",
            data=DataSettings(source="made here", target="made here"),
            transforms=PairTransformSettings(
                kind="affine", size=self.size, mean=(0.5,) * channels, std=(0.25,) * channels
            ),
            model=ModelSettings(backbone=self.backbone, weights="none", head=128),
            self_training=SelfTrainingSettings(
                batch=BatchSettings(source=self.half_batch, selected=self.half_batch), optim=OptimSettings(lr=0.01)
            ),
            runtime=runtime,
        )


SUBJECTS = {
    "digits_cnn": Subject("digits_cnn", channels=1, size=28, half_batch=64, steps=60, count=5000),
    "efficientnet_lite0": Subject("tf_efficientnet_lite0", channels=3, size=96, half_batch=32, steps=10, count=512),
    "resnet18": Subject("resnet18", channels=3, size=96, half_batch=16, steps=10, count=256),
}


def _network(config: AdaptationConfig, channels: int) -> nn.Module:
    from uda.models.network import create_network

    torch.manual_seed(0)
    return create_network(config.model, NUM_CLASSES, channels)


def _training_step(subject: Subject, ours: RuntimeSettings, floor: RuntimeSettings, bar: float | None) -> Contest:
    """`Engine.fit` of the self-training method and a bare loop with the same update, on the same prepared batches."""
    batches = training_batches(subject)
    return Contest(
        at_first_call(lambda: our_training(subject, ours, batches)),
        at_first_call(lambda: bare_training(subject, floor, batches)),
        per_call=subject.steps,
        bar=bar,
    )


def training_batches(subject: Subject) -> "list[Batch]":
    """Prepared batches for all steps of a call."""
    from uda.data.batch import Batch

    total, size = 2 * subject.half_batch, subject.size
    is_target = torch.arange(total) >= subject.half_batch
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            images=torch.randn(total, subject.channels, size, size, generator=generator),
            labels=one_hot(torch.randint(NUM_CLASSES, (total,), generator=generator), NUM_CLASSES).float(),
            domain=is_target.long(),
            is_target=is_target,
            view=torch.zeros(total, dtype=torch.int64),
        )
        for _ in range(subject.steps)
    ]


def our_training(
    subject: Subject,
    runtime: RuntimeSettings,
    batches: "list[Batch]",
    ranks: "Ranks | None" = None,
    during: bool = True,
) -> Callable[[], object]:
    """Our training. `during`: several processes average gradients during the backward pass, else after it."""
    from uda.adaptation.methods import ADAPTATION_METHODS
    from uda.training.device import set_up_process
    from uda.training.engine import Engine

    config = subject.config(runtime)
    network = _network(config, subject.channels)
    set_up_process(config.runtime)
    engine = Engine(network, config.runtime, log=lambda line: None, ranks=ranks)
    method = ADAPTATION_METHODS["self_training"](network, config.method_settings())
    optimization = engine.optimization(method, config.self_training.optim, subject.steps)
    if not during:
        optimization.averaged_loss = None
    return lambda: engine.fit(method, batches, optimization, label="bench", steps=subject.steps)


def bare_training(
    subject: Subject, runtime: RuntimeSettings, batches: "list[Batch]", parallel: bool = False
) -> Callable[[], object]:
    """The same update as a bare loop. `parallel`: with DistributedDataParallel over all processes of the job."""
    config = subject.config(runtime)
    network, settings = _ready(config, subject.channels)
    model = nn.Sequential(network.backbone, network.head, network.classifier)
    forward = nn.parallel.DistributedDataParallel(model) if parallel else model
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    optim = config.self_training.optim
    sgd = torch.optim.SGD(
        model.parameters(),
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=True,
        weight_decay=optim.weight_decay,
        fused=settings.fused or None,
    )

    def train() -> None:
        model.train()
        for batch in batches:
            images = batch.images.to(memory_format=memory_format)
            with _autocast(settings.precision):
                loss = cross_entropy(forward(images).float(), batch.labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()

    return train


def _predict_pass(subject: Subject, ours: RuntimeSettings, floor: RuntimeSettings, bar: float | None) -> Contest:
    """`Engine.predict` with our loader, against a bare loop over the array that also keeps features and logits."""
    shape = (subject.count, subject.channels, subject.size, subject.size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Contest(
        at_first_call(lambda: _our_prediction(subject, ours, pixels)),
        at_first_call(lambda: _bare_prediction(subject, floor, pixels)),
        per_call=subject.count,
        bar=bar,
    )


def _our_prediction(subject: Subject, runtime: RuntimeSettings, pixels: Tensor) -> Callable[[], object]:
    from uda.data.images import ImageArray
    from uda.data.loaders import predict_batches
    from uda.data.transforms import make_predict
    from uda.training.device import set_up_process
    from uda.training.engine import Engine

    config = subject.config(runtime)
    set_up_process(config.runtime)
    engine = Engine(_network(config, subject.channels), config.runtime, log=lambda line: None)
    images = ImageArray(pixels.numpy(), [str(i) for i in range(subject.count)])
    transform = make_predict(config.transforms)

    def predict() -> object:
        batches = predict_batches(images, transform, batch_size=engine.predict_batch_size, workers=0)
        return engine.predict(batches, subject.count)

    return predict


def _bare_prediction(subject: Subject, runtime: RuntimeSettings, pixels: Tensor) -> Callable[[], object]:
    config = subject.config(runtime)
    network, settings = _ready(config, subject.channels)
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.transforms.mean, config.transforms.std))

    @torch.inference_mode()
    def predict() -> object:
        network.eval()
        features, logits = [], []
        with _autocast(settings.predict_precision):
            for chunk in pixels.split(settings.predict_batch_size):
                images = ((chunk.float() / 255 - mean) / std).to(memory_format=memory_format)
                features.append(network.head(network.backbone(images)).float())
                with _autocast("fp32"):
                    logits.append(network.classifier(features[-1]))
        return torch.cat(features).numpy(), torch.cat(logits).numpy()

    return predict


def _ready(config: AdaptationConfig, channels: int) -> tuple[nn.Module, RuntimeSettings]:
    """A network for a bare loop, and its resolved settings. Sets up the process."""
    from uda.training.device import set_up_process, settle

    network = _network(config, channels)
    set_up_process(config.runtime)
    settings = settle(config.runtime, network)
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)
    return network, settings


def _autocast(precision: str) -> torch.autocast:
    """The autocast of a bare loop on a CPU."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


WORK = {
    "train": (_training_step, "A self-training step"),
    "predict": (_predict_pass, "Time per image of the predict pass"),
}


def _register_against_tuned(work: str, subject: str, precision: str, memory_format: str) -> None:
    make, unit = WORK[work]
    runtime = RuntimeSettings(
        device="cpu",
        precision=precision,
        predict_precision=precision,
        channels_last=memory_format == "channels_last",
    )

    def contest(scale: float) -> Contest:
        share = scale * (BF16_SHARE if precision == "bf16" else 1)
        return make(SUBJECTS[subject].scaled(share), runtime, runtime, LOOP_BAR)

    contest.__doc__ = f"{unit}, {subject}, {precision}, {memory_format}, against a bare loop with the same settings."
    BENCHMARKS.register(f"{work}_{subject}_{precision}_{memory_format}")(contest)


def _register_against_plain(work: str, subject: str) -> None:
    make, unit = WORK[work]

    def contest(scale: float) -> Contest:
        return make(SUBJECTS[subject].scaled(scale), AUTOMATIC, PLAIN, LOOP_BAR)

    contest.__doc__ = f"{unit}, {subject}, all settings automatic, against a plain loop."
    BENCHMARKS.register(f"{work}_{subject}_vs_plain")(contest)


for _work, _subject in itertools.product(WORK, SUBJECTS):
    _register_against_plain(_work, _subject)
    for _precision, _format in itertools.product(("fp32", "bf16"), ("channels_last", "contiguous")):
        _register_against_tuned(_work, _subject, _precision, _format)


@BENCHMARKS.register("compile_resnet18")
def compiled(scale: float) -> Contest:
    """A self-training step, resnet18, with torch.compile, against a bare eager loop. Compilation is not timed."""
    return _training_step(
        SUBJECTS["resnet18"].scaled(scale), AUTOMATIC.model_copy(update={"compile": True}), AUTOMATIC, bar=None
    )
