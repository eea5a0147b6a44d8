"""A training step of every method of domain generalisation, against a step of ERM on the same images.

EfficientNet-Lite0 at 96 pixels, a head of 256, 32 images of each of three domains, data in memory, all settings
automatic. If a method has stages, the step is the mean over the stages, weighted by their shares.
"""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.contest import BENCHMARKS, Contest, at_first_call
from uda.data.settings import TransformSettings
from uda.generalization.config import DomainsSettings, GeneralizationConfig, TrainingSettings
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.models.settings import ModelSettings
from uda.training.settings import RuntimeSettings

NUM_CLASSES, SIZE = 7, 96
DOMAINS = ("art", "cartoon", "photo")
EACH = 32
STEPS = 4
#: The largest cost of a step, in steps of ERM.
LIMITS = {"mldg": 3.2, "mldg_first_order": 2.2, "avh_loss": 1.05}


def _config(method: str, options: Mapping[str, Any], loss: str, each: int) -> GeneralizationConfig:
    return GeneralizationConfig(
        name="bench",
        method=method,
        method_options=options,
        data=DomainsSettings(domains=[*DOMAINS, "sketch"]),
        target="sketch",
        transforms=TransformSettings(size=SIZE),
        model=ModelSettings(backbone="tf_efficientnet_lite0", weights="none", head=256, loss=loss),
        training=TrainingSettings(batch_size=each),
        runtime=RuntimeSettings(device="cpu"),
    )


def stage_steps(method: str, scale: float) -> list[int]:
    """Steps of each stage of a method in a call, at least one."""
    return [max(1, round(STEPS * scale * share)) for share in GENERALIZATION_METHODS[method].stages]


def _training(config: GeneralizationConfig, steps: list[int]) -> Callable[[], object]:
    """`Engine.fit` of a method on prepared batches, stage by stage."""
    import torch
    from torch.nn.functional import one_hot

    from uda.data.batch import Batch
    from uda.models.network import create_network
    from uda.training.device import set_up_process
    from uda.training.engine import Engine

    total = len(DOMAINS) * config.training.batch_size
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        images=torch.randn(total, 3, SIZE, SIZE, generator=generator),
        labels=one_hot(torch.randint(NUM_CLASSES, (total,), generator=generator), NUM_CLASSES).float(),
        domain=torch.arange(len(DOMAINS)).repeat_interleave(config.training.batch_size),
        is_target=torch.zeros(total, dtype=torch.bool),
        view=torch.zeros(total, dtype=torch.int64),
    )

    def stage(number: int) -> Callable[[], object]:
        # Each stage has its own network, because calls repeat and a later stage may freeze or replace layers.
        torch.manual_seed(0)
        network = create_network(config.model, NUM_CLASSES, 3)
        set_up_process(config.runtime)
        engine = Engine(network, config.runtime, log=None)
        method = GENERALIZATION_METHODS[config.method](network, len(DOMAINS), **config.method_settings)
        engine.attach(method)
        for begun in range(number + 1):
            method.begin(begun)
        count = steps[number]
        optimization = engine.optimization(method, config.training.optim, count)
        return lambda: engine.fit(method, [batch] * count, optimization, label="bench", steps=count)

    stages = [stage(number) for number in range(len(steps))]

    def train() -> None:
        for fit in stages:
            fit()

    return train


def _register(name: str, method: str, options: Mapping[str, Any], loss: str = "cross_entropy") -> None:
    limit = LIMITS.get(name)

    def contest(scale: float) -> Contest:
        each, steps = max(2, round(EACH * min(1, 10 * scale))), stage_steps(method, scale)
        ours = _config(method, options, loss, each)
        floor = _config("erm", {}, "cross_entropy", each)
        return Contest(
            at_first_call(lambda: _training(ours, steps)),
            at_first_call(lambda: _training(floor, [sum(steps)])),
            per_call=sum(steps),
            bar=1 / limit if limit else None,
        )

    contest.__doc__ = f"A training step of {name}, against a step of ERM, EfficientNet-Lite0 at {SIZE} px, 3 x {EACH}."
    BENCHMARKS.register(f"generalize_{name}")(contest)


for _name in sorted(set(GENERALIZATION_METHODS) - {"erm"}):
    _register(_name, _name, {})
    if "first_order" in GENERALIZATION_METHODS[_name].Options.model_fields:
        _register(f"{_name}_first_order", _name, {"first_order": True})
_register("avh_loss", "erm", {}, loss="avh")
