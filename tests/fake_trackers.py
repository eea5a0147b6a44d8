"""Small stand-ins for the packages `wandb` and `mlflow`, which the tests do not need. They keep their calls."""

import sys
from types import ModuleType, SimpleNamespace

import pytest


def fake_wandb() -> ModuleType:
    """The part of Weights & Biases that the documentation's logger uses; `calls` has what it was told."""
    module = ModuleType("wandb")
    module.calls = []

    class Run:
        summary = SimpleNamespace(update=lambda figures: module.calls.append(("summary", dict(figures))))

        def define_metric(self, name, step_metric):
            module.calls.append(("define_metric", name, step_metric))

        def log(self, values):
            assert all(isinstance(value, (int, float, module.Image)) for value in values.values()), values
            module.calls.append(("log", dict(values)))

        def finish(self):
            module.calls.append(("finish",))

    class Image:
        def __init__(self, pixels):
            assert pixels.dtype == "uint8" and pixels.ndim == 3 and pixels.shape[2] == 3

    def init(*, project, id, resume, config):
        assert resume == "allow" and isinstance(config, dict)
        module.calls.append(("init", project, id))
        return Run()

    module.Image, module.init = Image, init
    ids = iter(range(1000))
    module.util = SimpleNamespace(generate_id=lambda: f"id{next(ids)}")
    return module


def fake_mlflow() -> ModuleType:
    """The part of MLflow that the documentation's logger uses."""
    module = ModuleType("mlflow")
    module.calls = []

    def start_run(run_id=None, run_name=None):
        module.calls.append(("start_run", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "fresh"))

    def log_metrics(values, step):
        assert all(isinstance(value, float) for value in values.values()) and isinstance(step, int), (values, step)
        module.calls.append(("log_metrics", dict(values), step))

    module.start_run, module.log_metrics = start_run, log_metrics
    module.set_experiment = lambda name: module.calls.append(("set_experiment", name))
    module.log_params = lambda settings: module.calls.append(("log_params", dict(settings)))
    module.end_run = lambda: module.calls.append(("end_run",))
    return module


def install(patch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Make both importable. Their loggers are forgotten with `forget`."""
    modules = {"wandb": fake_wandb(), "mlflow": fake_mlflow()}
    for name, module in modules.items():
        patch.setitem(sys.modules, name, module)
    return modules


def forget() -> None:
    """Remove the documentation's loggers from the registry: a plugin registers once per process."""
    from uda.report.loggers import LOGGERS

    for name in ("wandb", "mlflow"):
        LOGGERS._entries.pop(name, None)
