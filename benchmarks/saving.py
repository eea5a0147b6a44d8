"""The cost of checkpoints in a run."""

import tempfile

from benchmarks.contest import BENCHMARKS, Contest
from uda.adaptation.config import AdaptationConfig


@BENCHMARKS.register("checkpoints_digits")
def checkpoints_of_digits(scale: float) -> Contest:
    """A digits run of two rounds with checkpoints, against the same run without checkpoints; at most 2 % more."""
    return Contest(lambda: _run_digits(scale, save=True), lambda: _run_digits(scale, save=False), bar=0.98)


def _run_digits(scale: float, save: bool) -> None:
    from uda.adaptation.run import AdaptationRun
    from uda.training.device import set_up_process
    from uda.training.run_folder import RunLog

    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"output={folder}/run",
            f"data.rendered_per_class={max(20, round(1000 * scale))}",
            "source.epochs=1",
            "self_training.rounds=2",
            f"self_training.steps={max(2, round(50 * scale))}",
            "report.loggers=[]",
            "report.page=false",
        ]
        config = AdaptationConfig.load("digits_avh", overrides)
        set_up_process(config.runtime)
        run = AdaptationRun(config, RunLog(silent=True))
        if not save:
            run.checkpoints.save = lambda *_: None
        run.execute()
