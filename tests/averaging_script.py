"""What both processes of a job do for tests/training/test_averaging.py; not a test module by itself.

Most checks train twice from the same weights: with the gradients averaged by DistributedDataParallel while the
backward pass runs, and by `Ranks.average_gradients` after it. Halves are exact: two processes get the same bits.
"""

import copy
import gc
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS, AdaptationMethod
from uda.core.distributed import Ranks, start
from uda.data.batch import Batch
from uda.generalization.config import GeneralizationConfig
from uda.generalization.methods import GENERALIZATION_METHODS, GeneralizationMethod
from uda.models.network import Network
from uda.training.device import set_up_process
from uda.training.engine import Engine, EpochState
from uda.training.method import Method
from uda.training.settings import OptimSettings, RuntimeSettings

NEEDED = {
    "fixmatch": ["adaptation.strong={jitter: 0.5}", "method_options.threshold=0.3"],
    "dann": ["method_options={hidden: 8}"],
    "cdan": ["method_options={hidden: 8}"],
    "self_training": ["self_training.regularizer=mrkld"],
    "feature_critic": ["method_options={hidden: 8}"],
}
OPTIM = OptimSettings(lr=0.1)
#: The pixels of the first image of rank 1's batches.
MARK = 9.0


class LeavesOut(Method):
    """Rank 1 alone uses the module `sometimes`, and not in the last part of a batch; none uses `never`."""

    def __init__(self, network):
        super().__init__(network)
        self.modules["sometimes"] = nn.Linear(3, 3)
        self.modules["never"] = nn.Linear(3, 3)

    def loss(self, batch):
        logits = self.network(batch.images).logits
        if batch.images[0, 0, 0, 0] == MARK:
            logits = logits + self.modules["sometimes"](logits)
        parts = {"loss/never": self.modules["never"](logits).sum()}  # with a graph: must not count as a use
        return self.network.loss(logits, batch.labels), parts


def tiny_network():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(backbone, 4, 3, head=6)


def batches(ranks: Ranks, method: Method, steps: int = 2) -> list[Batch]:
    """This rank's own images: 8 rows on rank 0, 12 on rank 1, with the weights of such shares."""
    generator = torch.Generator().manual_seed(ranks.rank)
    number = torch.arange((8, 12)[ranks.rank])
    adapts = isinstance(method, AdaptationMethod)
    source_free = adapts and not method.needs_source
    source = 0 if source_free else len(number) // 2
    is_target = number >= (len(number) if isinstance(method, GeneralizationMethod) else source)
    domain = is_target.long() if is_target.any() else number % 3
    view = (number >= len(number) * 3 // 4).long() * (adapts and method.views == 2)
    images = [torch.randn(len(number), 1, 8, 8, generator=generator) for _ in range(steps)]
    for each in images[: steps * ranks.rank]:
        each[0] = MARK
    return [
        Batch(
            each,
            torch.eye(3)[number % 3],
            domain,
            is_target,
            view,
            weight=len(number) / 10,
        )
        for each in images
    ]


def make(name: str) -> Method:
    """A method on a fresh network, with the least that it needs."""
    network = tiny_network()
    if name == "leaves_out":
        return LeavesOut(network)
    words = [f"method={name}", *NEEDED.get(name, [])]
    if name in ADAPTATION_METHODS:
        config = AdaptationConfig.load("digits_avh" if ADAPTATION_METHODS[name].rounds else "digits_source", words)
        return ADAPTATION_METHODS[name](network, config.method_settings())
    config = GeneralizationConfig.load("rotated_digits_erm", words)
    method = GENERALIZATION_METHODS[name](network, 3, **config.method_settings)
    method.stage = len(method.stages) - 1
    return method


def one_backward(registry: Mapping[str, type[Method]]) -> list[str]:
    """Names of the methods whose step is one backward pass."""
    return sorted(name for name, method in registry.items() if method.step is Method.step)


def trained(
    ranks: Ranks, method: Method, reduce: bool, optim: OptimSettings = OPTIM, scaled: bool = False, **options
) -> dict[str, Tensor]:
    """All that a training of two steps leaves, by name; `reduce`: by DistributedDataParallel."""
    freeze_batch_norm = options.pop("freeze_batch_norm", False)
    settings = RuntimeSettings(device="cpu", threads=1, allocator="default", **options)
    engine = Engine(method.network, settings, None, ranks)
    engine.attach(method)
    given = batches(ranks, method)
    optimization = engine.optimization(method, optim, len(given))
    if scaled:
        optimization.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    averaged, average = [], Ranks.average_gradients
    ranks.average_gradients = lambda parameters: averaged.append(average(ranks, parameters))
    if not reduce:
        optimization.averaged_loss = None
    means = engine.fit(method, given, optimization, label="x", steps=2, freeze_batch_norm=freeze_batch_norm)
    del ranks.average_gradients
    assert len(averaged) == (0 if reduce else 2)
    return {
        **method.network.state_dict(),
        **{f"own {name}": tensor for name, tensor in method.modules.state_dict().items()},
        **{f"grad {number}": p.grad for number, p in enumerate(optimization.moving) if p.grad is not None},
        **{f"mean {name}": torch.tensor(mean) for name, mean in means.items()},
    }


def check_both_ways(ranks: Ranks, name: str, frozen: bool = False, **options) -> Method:
    """Both ways come to the same bits, on both ranks; and to others than those of the beginning."""
    found = []
    for reduce in (True, False):
        method = make(name)
        method.network.backbone.requires_grad_(not frozen)
        found.append(trained(ranks, method, reduce, **options))
    assert found[0].keys() == found[1].keys(), (name, options, found[0].keys() ^ found[1].keys())
    for key, tensor in found[0].items():
        assert torch.equal(tensor, found[1][key]), (name, options, key)
        ranks.check_same(f"{name} {options} {key}", str(tensor.double().flatten().tolist()))
    head = "head.0.weight"
    assert not torch.equal(found[0][head], make(name).network.state_dict()[head]), name
    return method


def every_method(ranks: Ranks) -> None:
    names = one_backward(ADAPTATION_METHODS) + one_backward(GENERALIZATION_METHODS)
    assert {"source_only", "self_training", "dann", "shot", "fixmatch", "erm", "mldg", "feature_critic"} <= set(names)
    for name in names:
        check_both_ways(ranks, name)


def settings(ranks: Ranks) -> None:
    for name in ("dann", "leaves_out"):
        check_both_ways(ranks, name, accumulate=2)
    check_both_ways(ranks, "source_only", optim=OptimSettings(lr=0.1, clip_grad=0.01, name="adamw"), scaled=True)
    check_both_ways(ranks, "source_only", precision="bf16", freeze_batch_norm=True)
    method = check_both_ways(ranks, "source_only", frozen=True)
    assert all(p.grad is None for p in method.network.backbone.parameters())


def left_out(ranks: Ranks) -> None:
    """What one rank uses is everyone's; what none uses has no gradient, and so no weight decay."""
    method = check_both_ways(ranks, "leaves_out")
    before = make("leaves_out").modules
    assert not torch.equal(method.modules["sometimes"].weight, before["sometimes"].weight)
    assert method.modules["never"].weight.grad is None
    assert torch.equal(method.modules["never"].weight, before["never"].weight)
    shot = check_both_ways(ranks, "shot")
    assert shot.network.classifier.weight.grad is None, "the classifier is not among the parameters that move"


def stages(ranks: Ranks) -> None:
    """A stage's wrapper goes with it, and its buckets; a second one that lives at the same time changes nothing."""
    alone, together = [], []
    for found, keep in ((alone, False), (together, True)):
        method = make("source_only")
        kept = []
        for _ in range(2):
            engine = Engine(method.network, RuntimeSettings(device="cpu", threads=1, allocator="default"), None, ranks)
            optimization = engine.optimization(method, OPTIM, 2)
            engine.fit(method, batches(ranks, method), optimization, label="x", steps=2)
            kept.append(optimization if keep else weakref.ref(optimization.averaged_loss))
            bucket = next(method.network.parameters()).grad.untyped_storage().nbytes()
            assert bucket == 4 * sum(p.numel() for p in method.network.parameters()), "gradients lie in one bucket"
            gc.collect()
            gc.disable()
            del optimization
            gc.enable()
            assert keep or kept[-1]() is None, "it is gone without a search for cycles"
        found += method.network.state_dict().values()
    assert all(torch.equal(first, second) for first, second in zip(alone, together, strict=True))


def resumed(ranks: Ranks) -> None:
    """A stage that pauses after a step resumes to the same bits with a new wrapper."""
    ends = []
    for pause in (False, True):
        method = make("dann")
        engine = Engine(method.network, RuntimeSettings(device="cpu", threads=1, allocator="default"), None, ranks)
        engine.attach(method)
        optimization = engine.optimization(method, OPTIM, 2)
        given = batches(ranks, method)
        if pause:
            engine.fit(method, given[:1], optimization, label="x", steps=2)
            state = copy.deepcopy(optimization.state_dict())
            optimization = engine.optimization(method, OPTIM, 2)
            optimization.load_state_dict(state)
            engine.fit(method, given[1:], optimization, label="x", steps=2, begin=EpochState(1))
        else:
            engine.fit(method, given, optimization, label="x", steps=2)
        ends.append(optimization.moving)
    assert all(torch.equal(first, second) for first, second in zip(*ends, strict=True))


if __name__ == "__main__":
    set_up_process(RuntimeSettings(device="cpu", threads=1, allocator="default"))
    with start() as ranks:
        for check in (every_method, settings, left_out, stages, resumed):
            check(ranks)
            ranks.maximum([0.0])
        Path(sys.argv[1], f"{ranks.rank}.done").touch()
