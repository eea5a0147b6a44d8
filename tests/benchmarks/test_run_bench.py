"""The benchmark tool: every contest runs, and the figures that it writes are consistent."""

import importlib.util
import itertools
import json
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import Contest, banks, generalization, network
from tests.forked import Forked
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.cli.command_line import run_command
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.training import device

TOOL = CHECKOUT / "benchmarks" / "run_bench.py"


def load_tool():
    spec = importlib.util.spec_from_file_location("bench_under_test", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bench = load_tool()


#: The others build large networks, or start a Python of their own.
QUICK = ("select", "train_digits_cnn", "predict_digits_cnn")


def test_list_names_every_benchmark_with_a_line(capsys):
    assert bench.main(["--list"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == sorted(bench.BENCHMARKS)
    assert all(len(line) == 2 for line in lines)


def test_both_floors_stand_for_every_network_precision_and_memory_format():
    for work, subject in itertools.product(("train", "predict"), ("digits_cnn", "efficientnet_lite0", "resnet18")):
        wanted = {f"{work}_{subject}_vs_plain"}
        wanted |= {f"{work}_{subject}_{p}_{f}" for p in ("fp32", "bf16") for f in ("channels_last", "contiguous")}
        assert wanted <= bench.BENCHMARKS.keys()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name.startswith(QUICK) else pytest.mark.slow) for name in sorted(bench.BENCHMARKS)],
)
def test_every_contest_runs(name):
    """The least amount of work, both sides in this process, and a bar is a ratio that an overhead can miss.

    Only reading files has a floor that can be undercut: another library's way to read them. A method of domain
    generalisation may cost some steps of its floor, which is another method. A step on features is so short that it may
    cost 15 % more than a bare one.
    """
    contest = bench.BENCHMARKS[name](0.001)
    contest.floor(), contest.ours()
    assert contest.per_call >= 1
    least = 0.3 if name.startswith("generalize") else 0.86 if name == "bank_train" else 0.9
    assert contest.bar is None or least < contest.bar <= (8 if name.startswith("files") else 1)


def test_every_method_of_adaptation_has_a_row():
    """But source-only, which the others are timed against."""
    rows = {name for name in bench.BENCHMARKS if name.startswith("method_")}
    assert rows == {f"method_{name}" for name in ADAPTATION_METHODS if name != "source_only"}


def test_every_method_of_domain_generalisation_has_a_row():
    """Those with a first-order switch have two; what a step may cost is a bar: 1.05 steps of ERM's are 1 / 1.05."""
    wanted = set(GENERALIZATION_METHODS) - {"erm"} | {"avh_loss"}
    wanted |= {
        f"{name}_first_order"
        for name, method in GENERALIZATION_METHODS.items()
        if "first_order" in method.Options.model_fields
    }
    rows = {name: make(1.0) for name, make in bench.BENCHMARKS.items() if name.startswith("generalize_")}
    assert rows.keys() == {f"generalize_{name}" for name in wanted}
    assert rows["generalize_avh_loss"].bar == pytest.approx(0.952, abs=0.001)


def test_a_method_in_stages_is_timed_over_all_of_them(monkeypatch):
    """Three quarters and a quarter of 4 steps; the second stage has been through the first one's beginning."""
    begun, steps = [], []

    class Staged(GENERALIZATION_METHODS["erm"]):
        stages = (0.75, 0.25)

        def begin(self, stage):
            begun.append(stage)

        def loss(self, batch):
            steps.append(batch.domain.tolist())
            return super().loss(batch)

    monkeypatch.setitem(GENERALIZATION_METHODS._entries, "staged", Staged)
    assert generalization.stage_steps("staged", 1.0) == [3, 1] and generalization.stage_steps("staged", 0.001) == [1, 1]
    train = generalization._training(generalization._config("staged", {}, "cross_entropy", 2), [3, 1])
    assert begun == [0, 0, 1] and steps == []
    train()
    assert steps == [[0, 0, 1, 1, 2, 2]] * 4


def networks_made(monkeypatch):
    """The networks that benchmarks build from here on, in order."""
    made, build = [], network._network

    def kept(*arguments):
        made.append(build(*arguments))
        return made[-1]

    monkeypatch.setattr(network, "_network", kept)
    return made


@pytest.mark.parametrize("runtime", [network.PLAIN, network.AUTOMATIC], ids=["plain", "automatic"])
def test_ours_and_the_bare_loop_train_to_the_same_weights(monkeypatch, runtime):
    """Otherwise the ratio would compare two kinds of work."""
    subject = replace(network.SUBJECTS["digits_cnn"], half_batch=8, steps=2)
    made = networks_made(monkeypatch)
    contest = network._training_step(subject, runtime, runtime, None)
    contest.ours(), contest.floor()
    ours, bare = (model.state_dict() for model in made)
    start = network._network(subject.config(runtime), 1).state_dict()
    assert not torch.allclose(ours["classifier.weight"], start["classifier.weight"], atol=1e-4)
    for name, value in ours.items():
        torch.testing.assert_close(value, bare[name], atol=1e-5, rtol=1e-4)


def test_ours_and_the_bare_loop_on_features_train_to_the_same_weights():
    features, labels = banks._features(0.05)
    ours, bare = (train(features, labels, 20)().state_dict() for train in (banks.our_training, banks.bare_training))
    start = banks._network(banks._config()).state_dict()
    assert not torch.allclose(ours["classifier.weight"], start["classifier.weight"], atol=1e-4)
    for name, value in ours.items():
        torch.testing.assert_close(value, bare[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("runtime", [network.PLAIN, network.AUTOMATIC], ids=["plain", "automatic"])
def test_ours_and_the_bare_loop_predict_the_same(runtime):
    contest = network._predict_pass(replace(network.SUBJECTS["digits_cnn"], count=50), runtime, runtime, None)
    ours, (features, logits) = contest.ours(), contest.floor()
    np.testing.assert_allclose(ours.features, features, atol=1e-5)
    np.testing.assert_allclose(ours.logits, logits, atol=1e-5)


def test_a_plain_floor_leaves_malloc_alone_and_ours_tunes_it(monkeypatch):
    calls = []
    monkeypatch.setattr(device, "keep_memory", lambda: calls.append(True))
    monkeypatch.setattr(device, "_has_glibc", lambda: True)
    monkeypatch.setattr(device, "_malloc_is_chosen", lambda: False)
    contest = bench.BENCHMARKS["predict_digits_cnn_vs_plain"](0.001)
    contest.floor()
    assert not calls
    contest.ours()
    assert calls


@pytest.mark.slow
def test_json_of_a_quick_benchmark(tmp_path):
    path, document = tmp_path / "bench.json", tmp_path / "page.md"
    blocks = ("bench-machines", "bench")
    document.write_text("".join(f"<!-- table {name} -->\n<!-- end {name} -->\n" for name in blocks))
    earlier = {"name": "import_uda", "seconds": 2.0, "floor_seconds": 1.0, "ratio": 0.5, "bar": None}
    earlier |= {"limit_seconds": 1.5, "peak_mib": 1.0, "floor_peak_mib": 1.0}
    path.write_text(json.dumps([earlier, {**earlier, "name": "of_old"}]))
    command = ["--only", "select_1000000*", "--scale", "0.001", "--repeats", "1", "--json", str(path)]
    command += ["--into", str(document)]
    process = Forked(TOOL, *command)
    output, error = process.communicate()
    assert process.returncode == 0, error
    kept, row = json.loads(path.read_text(encoding="utf-8"))
    assert kept == earlier, "what was measured before stays, unless there is no such benchmark any more"
    assert (
        "`import_uda` | **0.50, above its limit** |" in document.read_text()
        and "`select_1000000x12`" in document.read_text()
    )
    assert row.keys() >= {"name", "seconds", "floor_seconds", "ratio", "bar", "peak_mib", "floor_peak_mib"}
    assert row["name"] == "select_1000000x12" and row["seconds"] > 0
    assert row["ratio"] == pytest.approx(row["floor_seconds"] / row["seconds"])
    assert (row["scale"], row["repeats"]) == (0.001, 1) and row["environment"]["torch"] == torch.__version__
    assert f"{row['ratio']:.3f}" in output
    assert f"1 of 2 rows: python {row['environment']['python']}" in document.read_text()
    assert row["environment"]["processor"] == device.processor()


class Pipe:
    """The other end of a side's process: asks for the first call, for so many timings, and for the end."""

    def __init__(self, calls):
        self.orders = [True] * (1 + calls) + [False]
        self.sent = []

    def recv(self):
        return self.orders.pop(0)

    def send(self, answer):
        self.sent.append(answer)


def test_a_side_warms_up_once_and_gives_seconds_per_unit_of_work(monkeypatch):
    calls = []
    work = lambda: calls.append(time.sleep(0.05))  # noqa: E731
    monkeypatch.setitem(bench.BENCHMARKS._entries, "nap", lambda scale: Contest(work, work, 10, 0.97, 2.0))
    pipe = Pipe(calls=3)
    bench.serve("nap", 1.0, "ours", pipe)
    first, *seconds = pipe.sent
    assert (first["bar"], first["limit"]) == (0.97, 2.0) and first["peak"] >= 0
    assert len(calls) == 4 and len(seconds) == 3
    assert all(0.005 <= value < 0.05 for value in seconds)


def test_a_mistake_of_the_users_crosses_the_pipe(monkeypatch):
    def broken(scale):
        raise UserError("needs a package")

    monkeypatch.setitem(bench.BENCHMARKS._entries, "broken", broken)
    pipe = Pipe(calls=0)
    bench.serve("broken", 1.0, "ours", pipe)
    assert [str(answer) for answer in pipe.sent] == ["needs a package"]


@pytest.mark.parametrize(
    ("ratio", "bar", "limit", "verdict"),
    [
        (0.96, 0.97, None, "below the bar"),
        (0.97, 0.97, None, ""),
        (0.01, None, 3.0, ""),
        (9.0, None, 1.0, "above its limit"),
    ],
)
def test_verdicts(ratio, bar, limit, verdict):
    row = bench.Row("x", 2.0, 2.0 * ratio, ratio, bar, limit, 1.0, 1.0)
    assert row.verdict == verdict
    assert bench.table_line(row).endswith(verdict or "MiB")
    assert (f"| {limit:g} s |" if limit else "| 0.97 |") in bench.to_markdown([row])


def test_an_unknown_benchmark_is_named_before_anything_is_measured(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert run_command(lambda: bench.main(["--only", "predict_resnet18_vs_plane", "--json", str(path)])) == 2
    captured = capsys.readouterr()
    assert "did you mean 'predict_resnet18_vs_plain'?" in captured.err and captured.out == ""
    assert not path.exists()


@pytest.mark.parametrize("arguments", [["--scale", "0"], ["--scale", "2"], ["--repeats", "0"], ["--fast"]])
def test_wrong_use_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err
