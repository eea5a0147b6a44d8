"""The loggers of docs/loggers.md as plugins of real runs, with stand-ins for the packages that they use."""

import pytest

from tests import fake_trackers
from tests.adaptation.test_run import cut
from tests.docs.documents import TEXTS, marked
from tests.in_process import adapt


@pytest.fixture
def trackers(in_folder, monkeypatch):
    """The stand-ins; the plugins are in the working folder."""
    for name in ("wandb", "mlflow"):
        (block,) = marked(TEXTS["docs/loggers.md"], name, "python")
        assert block.startswith(f"# {name}_logger.py\n") and len(block.splitlines()) <= 40
        (in_folder / f"{name}_logger.py").write_text(block, encoding="utf-8")
    yield fake_trackers.install(monkeypatch)
    fake_trackers.forget()


def told(calls, name):
    return [call[1:] for call in calls if call[0] == name]


def test_weights_and_biases(tiny, trackers, in_folder, monkeypatch):
    words = ["--cfg", str(tiny), "plugins=wandb_logger.py", "report.loggers=[wandb]", "output=run"]
    cut(monkeypatch, lambda: adapt(words), saves=3)
    assert adapt(words) == 0
    calls = trackers["wandb"].calls
    assert told(calls, "init") == [("uda", "id0")] * 2, "a resumed run goes on"
    logged = [values for (values,) in told(calls, "log")]
    assert [values["report"] for values in logged if "validator/im" in values] == [-1, 0, 1]
    assert [values["step"] for values in logged if "training/loss" in values] == [4, 7, 10]
    assert {"oracle/class_mean", "selection/avc"} <= set().union(*logged)
    ((figures,),) = told(calls, "summary")
    assert {"final/im", "oracle/final"} <= figures.keys()
    assert calls[-1] == ("finish",)


def test_mlflow(tiny, trackers, in_folder, monkeypatch):
    words = ["--cfg", str(tiny), "plugins=mlflow_logger.py", "report.loggers=[mlflow]", "output=run"]
    cut(monkeypatch, lambda: adapt(words), saves=3)
    assert adapt(words) == 0
    calls = trackers["mlflow"].calls
    assert told(calls, "set_experiment") == [("tiny",)] * 2
    assert told(calls, "start_run") == [(None, "run"), ("fresh", None)], "a resumed run goes on"
    logged = told(calls, "log_metrics")
    assert [step for values, step in logged if "validator/im" in values] == [-1, 0, 1]
    assert [step for values, step in logged if "training/loss" in values] == [4, 7, 10]
    ((settings,),) = told(calls, "log_params")
    assert settings["self_training.rounds"] == 2 and settings["seed"] == 0
    assert calls[-1] == ("end_run",)


def test_a_service_that_is_down_does_not_end_the_run(tiny, trackers, in_folder, monkeypatch, capsys):
    def down(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(trackers["mlflow"], "log_metrics", down)
    words = ["--cfg", str(tiny), "plugins=mlflow_logger.py", "report.loggers=[tensorboard,mlflow]", "output=run"]
    assert adapt(words) == 0
    out = capsys.readouterr().out
    assert out.count("warning: logger 'mlflow' failed") == 1 and "ConnectionError: no route to host" in out
    assert (in_folder / "run" / "results.json").is_file() and list((in_folder / "run" / "tb").glob("events.*"))
