"""How fast is uda beside the least that the work can cost?

Every benchmark is a contest: our code against a floor, a bare hand-written PyTorch version of the work that no
toolkit can undercut. Both run in one process, turn about, so that a busy machine slows both alike; the figures
are medians, and `ratio` is floor / ours (1.00: no overhead). Peak memory is measured apart, in a fresh process
for each side, and counts what the work takes on top of its inputs.

    python tools/bench.py                                 # all of them
    python tools/bench.py --only select_1000000x12 --repeats 5
    python tools/bench.py --scale 0.01                    # a hundredth of the work: does it run?
    python tools/bench.py --json results/bench.json --into README.md
"""

import argparse
import copy
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from uda.atomic import write_json, write_text
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
from uda.errors import UserError
from uda.registry import Registry
from uda.tables import insert_markdown


@dataclass(frozen=True)
class Contest:
    """Our code and its floor, ready to run on the same inputs; a call returns when its work is done."""

    ours: Callable[[], object]
    floor: Callable[[], object]
    per_call: int = 1
    """Units of work in a call, for example training steps; seconds are given per unit."""
    bar: float | None = None
    """The ratio that is good enough; None: the row is there to be watched."""


@dataclass(frozen=True)
class Row:
    """One benchmark's figures."""

    name: str
    seconds: float
    """Ours, median, per unit of work."""
    floor_seconds: float
    """The floor's, likewise."""
    ratio: float
    """floor_seconds / seconds."""
    bar: float | None
    """The ratio that is good enough, if there is one."""
    peak_mib: float
    """Ours: most memory held at any time beyond the inputs."""
    floor_peak_mib: float
    """The floor's, likewise."""


#: name -> function of `scale` (share of the full amount of work, in (0, 1]) that builds the inputs and the Contest.
BENCHMARKS: Registry[Callable[[float], Contest]] = Registry("benchmark")


@BENCHMARKS.register("select_1000000x12")
def select_visda_like(scale: float) -> Contest:
    """AVC scores, thresholds and selection, 1,000,000 images of 12 classes, against the logits' matrix product."""
    return _selection(max(12, round(1_000_000 * scale)), 12)


@BENCHMARKS.register("select_100000x1000")
def select_imagenet_like(scale: float) -> Contest:
    """AVC scores, thresholds and selection, 100,000 images of 1,000 classes, against the logits' matrix product."""
    return _selection(max(1000, round(100_000 * scale)), 1000)


def _selection(num_images: int, num_classes: int, width: int = 512) -> Contest:
    """Selection from post-ReLU features (num_images, width), portion 0.2; the logits are there already, as in a run."""
    from uda.selectors import SELECTORS
    from uda.thresholds import class_balanced_thresholds, select

    generator = torch.Generator().manual_seed(0)
    # In place: a copy made here would raise the memory mark above what is measured afterwards.
    features = torch.randn(num_images, width, generator=generator).relu_()
    weight = torch.randn(num_classes, width, generator=generator)
    logits = features @ weight.T

    def ours() -> object:
        scores = SELECTORS["avc"](features, logits, weight)
        return select(scores, class_balanced_thresholds(scores, 0.2))

    return Contest(ours, floor=lambda: features @ weight.T)


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


def _peak_mib() -> float:
    """This process's largest resident set so far."""
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes / (2**20 if sys.platform == "darwin" else 2**10)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_contest(name: str, scale: float, repeats: int) -> tuple[float, float, float | None]:
    """Median seconds per unit of work: ours, the floor's; and the bar. One warm-up each, then turn about."""
    contest = BENCHMARKS[name](scale)
    contest.floor(), contest.ours()
    seconds: dict[str, list[float]] = {"ours": [], "floor": []}
    for repeat in range(repeats):
        # Who goes first alternates too: the second finds other caches than the first.
        for side in ("ours", "floor") if repeat % 2 else ("floor", "ours"):
            seconds[side].append(_seconds(getattr(contest, side)) / contest.per_call)
    return statistics.median(seconds["ours"]), statistics.median(seconds["floor"]), contest.bar


def measure_peak(name: str, scale: float, side: Literal["ours", "floor"]) -> float:
    """MiB that one call holds at its peak beyond what building its inputs took. Needs a fresh process."""
    contest = BENCHMARKS[name](scale)
    before = _peak_mib()
    getattr(contest, side)()
    return _peak_mib() - before


def _in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed in a new interpreter, which takes its memory with it when it ends."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def run(name: str, scale: float, repeats: int) -> Row:
    """Time one benchmark and measure its memory."""
    try:
        seconds, floor_seconds, bar = _in_fresh_process(time_contest, name, scale, repeats)
        peaks = [_in_fresh_process(measure_peak, name, scale, side) for side in ("ours", "floor")]
    except BrokenProcessPool:
        raise UserError(f"{name}: its process was killed, most likely for want of memory; try --scale 0.1") from None
    return Row(name, seconds, floor_seconds, floor_seconds / seconds, bar, *peaks)


def environment() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


HEADER = f"{'benchmark':<24}{'ours':>12}{'floor':>12}{'ratio':>8}{'bar':>7}{'peak':>12}{'floor peak':>13}"


def table_line(row: Row) -> str:
    """One row of the terminal's table."""
    bar = "-" if row.bar is None else f"{row.bar:.2f}"
    verdict = "  below the bar" if row.bar is not None and row.ratio < row.bar else ""
    return (
        f"{row.name:<24}{_readable(row.seconds):>12}{_readable(row.floor_seconds):>12}{row.ratio:>8.3f}{bar:>7}"
        f"{row.peak_mib:>8,.0f} MiB{row.floor_peak_mib:>9,.0f} MiB{verdict}"
    )


def to_markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| benchmark | bare / ours | bar | ours | bare | peak memory, ours / bare |", "|---|---|---|---|---|---|"]
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar:.2f}"
        times = f"{_readable(row.seconds)} | {_readable(row.floor_seconds)}"
        memory = f"{row.peak_mib:,.0f} / {row.floor_peak_mib:,.0f} MiB"
        lines.append(f"| `{row.name}` | {row.ratio:.2f} | {bar} | {times} | {memory} |")
    return "\n".join(lines) + "\n"


def _readable(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{1000 * seconds:.3f} ms"


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must lie above 0 and at most at 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--list", action="store_true", help="print the benchmarks, a line each, and end")
    parser.add_argument("--only", metavar="NAME", action="append", help="run this one only; may be given several times")
    parser.add_argument("--repeats", type=_count, default=5, help="timed calls of each side (default: 5)")
    parser.add_argument("--scale", type=_share, default=1.0, help="share of the full amount of work (default: 1)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to this file too")
    parser.add_argument("--into", metavar="FILE", type=Path, help="and into this document's bench block")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that the command line names. Returns the exit code: 0, or 2 for a mistake of the user's."""
    options = parse_arguments(arguments)
    if options.list:
        for name, line in BENCHMARKS.describe():
            print(f"{name:<24}{line}")
        return 0
    try:
        names = options.only or sorted(BENCHMARKS)
        for name in names:
            BENCHMARKS[name]
        print(", ".join(f"{key} {value}" for key, value in environment().items()))
        print(HEADER, flush=True)
        rows = []
        for name in names:
            rows.append(run(name, options.scale, options.repeats))
            print(table_line(rows[-1]), flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        content = {
            "environment": environment(),
            "scale": options.scale,
            "repeats": options.repeats,
            "rows": [asdict(row) for row in rows],
        }
        write_json(options.json, content)
    if options.into:
        document = options.into.read_text(encoding="utf-8")
        write_text(options.into, insert_markdown(document, "bench", to_markdown(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
