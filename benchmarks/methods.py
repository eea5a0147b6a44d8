"""A training step of every adaptation method, against a step of source-only with 32 + 32 images.

EfficientNet-Lite0 at 96 pixels, a head of 256, 32 source and 32 target images, data in memory, all settings automatic.
FixMatch uses two views of each target image, so its step has 96 images.
"""

from collections.abc import Callable

from benchmarks.contest import BENCHMARKS, Contest, at_first_call

NUM_CLASSES = 7
SOURCE = TARGET = 32
STEPS = 4
#: Settings that a method requires.
NEEDED = {"adr": ["model.dropout=0.5"], "fixmatch": ["adaptation.strong={jitter: 0.5}"]}


def _training(name: str, scale: float) -> Callable[[], object]:
    """`Engine.fit` of a method on prepared batches."""
    import torch
    from torch.nn.functional import one_hot

    from uda.adaptation.config import AdaptationConfig
    from uda.adaptation.methods import ADAPTATION_METHODS
    from uda.data.batch import Batch
    from uda.models.network import create_network
    from uda.training.device import set_up_process
    from uda.training.engine import Engine

    overrides = [f"method={name}", "runtime.device=cpu", *NEEDED.get(name, [])]
    config = AdaptationConfig.load("pacs_source", [*overrides, "model.weights=none"])
    torch.manual_seed(0)
    network = create_network(config.model, NUM_CLASSES, 3)
    set_up_process(config.runtime)
    engine = Engine(network, config.runtime, log=None)
    method = ADAPTATION_METHODS[name](network, config.method_settings())
    engine.attach(method)
    each, steps = max(2, round(SOURCE * min(1, 10 * scale))), max(1, round(STEPS * scale))
    generator = torch.Generator().manual_seed(0)
    view = torch.arange(2 + method.views - 1).clamp(min=1).sub(1).repeat_interleave(each)  # source, plain, strong
    is_target = torch.arange(len(view)) >= each
    labels = one_hot(torch.randint(NUM_CLASSES, (len(view),), generator=generator), NUM_CLASSES).float()
    images = torch.randn(len(view), 3, config.transforms.size, config.transforms.size, generator=generator)
    batch = Batch(images, labels, is_target.long(), is_target, view)
    optimization = engine.optimization(method, config.source.optim, steps)
    return lambda: engine.fit(method, [batch] * steps, optimization, label="bench", steps=steps)


def _register(name: str) -> None:
    def contest(scale: float) -> Contest:
        return Contest(
            at_first_call(lambda: _training(name, scale)),
            at_first_call(lambda: _training("source_only", scale)),
            per_call=max(1, round(STEPS * scale)),
        )

    contest.__doc__ = f"A training step of {name}, against a step of source_only, EfficientNet-Lite0 at 96 px, 32 + 32."
    BENCHMARKS.register(f"method_{name}")(contest)


# A list of names, because the registry of methods imports torch and this module should not.
for _name in (*("mmd", "dann", "ent", "entmin", "mcd", "adr"), *("cdan", "mcc", "fixmatch", "shot", "self_training")):
    _register(_name)
