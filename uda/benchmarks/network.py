"""Training step and predict pass against bare PyTorch loops on the same batches."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from uda.benchmarks.contest import BENCHMARKS, Contest
from uda.config import (
    BatchSettings,
    Config,
    DataSettings,
    ModelSettings,
    OptimSettings,
    RuntimeSettings,
    SelfTrainingSettings,
    TransformSettings,
)


@BENCHMARKS.register("train_step_digits_cnn")
def train_digits(scale: float) -> Contest:
    """A self-training step, digits_cnn, 64 source and 64 target images of 28 pixels, against a bare PyTorch loop."""
    return _training_step("digits_cnn", channels=1, size=28, half_batch=64, steps=max(1, round(20 * scale)))


@BENCHMARKS.register("train_step_resnet18")
def train_resnet(scale: float) -> Contest:
    """A self-training step, resnet18, 16 source and 16 target images of 96 pixels, against a bare PyTorch loop."""
    return _training_step("resnet18", channels=3, size=96, half_batch=16, steps=max(1, round(10 * scale)))


@BENCHMARKS.register("predict_digits_cnn")
def predict_digits(scale: float) -> Contest:
    """An image's share of the predict pass, digits_cnn, 5,000 images of 28 pixels, against a bare forward loop."""
    return _predict_pass("digits_cnn", channels=1, size=28, count=max(1, round(5000 * scale)))


@BENCHMARKS.register("predict_resnet18")
def predict_resnet(scale: float) -> Contest:
    """An image's share of the predict pass, resnet18, 1,024 images of 96 pixels, against a bare forward loop."""
    return _predict_pass("resnet18", channels=3, size=96, count=max(1, round(1024 * scale)))


#: Our training step and predict pass may cost at most 7 % more than a bare loop; the aim is 3 %.
LOOP_BAR = 0.93
NUM_CLASSES = 10


def _config(backbone: str, channels: int, size: int, half_batch: int) -> Config:
    return Config(
        name="bench",
        data=DataSettings(source="made here", target="made here"),
        transforms=TransformSettings(kind="affine", size=size, mean=(0.5,) * channels, std=(0.25,) * channels),
        model=ModelSettings(backbone=backbone, weights="none", head=128),
        self_training=SelfTrainingSettings(
            batch=BatchSettings(source=half_batch, selected=half_batch), optim=OptimSettings(lr=0.01)
        ),
        runtime=RuntimeSettings(device="cpu"),
    )


def _training_step(backbone: str, channels: int, size: int, half_batch: int, steps: int) -> Contest:
    """`Engine.fit` of the self-training method and the same update written out, on the same ready-made batches."""
    from uda.data.loaders import Batch
    from uda.engine import Engine
    from uda.methods import METHODS
    from uda.models import create_network

    config = _config(backbone, channels, size, half_batch)
    torch.manual_seed(0)
    network = create_network(config.model, NUM_CLASSES, channels)
    twin = copy.deepcopy(network)
    is_target = torch.arange(2 * half_batch) >= half_batch
    batches = [
        Batch(
            images=torch.randn(2 * half_batch, channels, size, size),
            labels=one_hot(torch.randint(NUM_CLASSES, (2 * half_batch,)), NUM_CLASSES).float(),
            domain=is_target.long(),
            is_target=is_target,
        )
        for _ in range(steps)
    ]

    engine = Engine(network, config.runtime, log=lambda line: None)
    method = METHODS["self_training"](network, config)
    optimization = engine.optimization(method, config.self_training.optim, steps)

    def ours() -> None:
        engine.fit(method, batches, optimization, label="bench", steps=steps)

    model = nn.Sequential(twin.backbone, twin.head, twin.classifier)
    optim = config.self_training.optim
    sgd = torch.optim.SGD(
        model.parameters(), lr=optim.lr, momentum=optim.momentum, nesterov=True, weight_decay=optim.weight_decay
    )

    def floor() -> None:
        model.train()
        for batch in batches:
            loss = cross_entropy(model(batch.images), batch.labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()

    return Contest(ours, floor, per_call=steps, bar=LOOP_BAR)


def _predict_pass(backbone: str, channels: int, size: int, count: int) -> Contest:
    """`Engine.predict` over our loader, and a bare loop over the array that keeps features and logits too."""
    from uda.data.images import ImageArray
    from uda.data.loaders import predict_batches
    from uda.data.transforms import make_predict
    from uda.engine import Engine
    from uda.models import create_network

    config = _config(backbone, channels, size, half_batch=2)
    torch.manual_seed(0)
    network = create_network(config.model, NUM_CLASSES, channels)
    pixels = torch.randint(256, (count, channels, size, size), dtype=torch.uint8)
    images = ImageArray(pixels.numpy(), [str(i) for i in range(count)])
    engine = Engine(network, config.runtime, log=lambda line: None)
    batch_size = engine.predict_batch_size

    def ours() -> object:
        transform = make_predict(config.transforms)
        return engine.predict(predict_batches(images, transform, batch_size=batch_size, workers=0), count)

    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.transforms.mean, config.transforms.std))

    @torch.inference_mode()
    def floor() -> object:
        network.eval()
        features, logits = [], []
        for chunk in pixels.split(batch_size):
            features.append(network.head(network.backbone((chunk.float() / 255 - mean) / std)))
            logits.append(network.classifier(features[-1]))
        return torch.cat(features).numpy(), torch.cat(logits).numpy()

    return Contest(ours, floor, per_call=count, bar=LOOP_BAR)
