"""The scaling tool: exponents and the estimate against values worked by hand, and a tiny run of all of it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import measure, scaling, scaling_document, world
from benchmarks.estimate import CARDS, RTX_3090, Assumptions, Job, Serial, estimate, job_of, visda_config
from benchmarks.memory import Memory, memory_of, peak_bytes
from benchmarks.scaling import Curve, Point, fitted_exponent
from tests.forked import Forked
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.work import steps_of_rounds
from uda.cli.command_line import run_command
from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT

TOOL = CHECKOUT / "benchmarks" / "run_scaling.py"
DOCUMENT = CHECKOUT / "docs" / "scaling.md"


def load_tool():
    spec = importlib.util.spec_from_file_location("scaling_under_test", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def test_exponents_are_those_of_the_upper_half():
    """3 n^1.5 above, whatever lies below: the middle of five points belongs to the upper half."""
    sizes = [10, 30, 100, 300, 1000]
    values = [7.0, 7.0, *(3 * n**1.5 for n in sizes[2:])]
    assert fitted_exponent(sizes, values) == pytest.approx(1.5)
    assert fitted_exponent(sizes, [5.0] * 5) == pytest.approx(0, abs=1e-12)
    assert fitted_exponent([10, 100], [1.0, 100.0]) == pytest.approx(2)
    # logarithms to the base 2 of the upper half: (2, 3, 4) and (0, 2, 2), of slope ((-1) 0 + 1 * 2) / 2
    assert fitted_exponent([1, 2, 4, 8, 16], [9.0, 9.0, 1.0, 4.0, 4.0]) == pytest.approx(1)


@pytest.mark.parametrize(("sizes", "values"), [([10], [1.0]), ([10, 100, 1000], [1.0, 0.0, 2.0])])
def test_no_exponent_of_one_point_or_of_nothing(sizes, values):
    assert fitted_exponent(sizes, values) is None


def test_seconds_between_and_beyond_the_points():
    """1 s at 10 and 100 s at 1,000: a straight line of slope 1 on logarithmic axes, level below."""
    curve = Curve("work", "N", (Point(10, 1.0, 0.0), Point(1000, 100.0, 0.0)))
    assert curve.seconds_at(100) == pytest.approx(10)
    assert curve.seconds_at(10_000) == pytest.approx(1000)
    assert curve.seconds_at(1) == pytest.approx(1)


GIVEN = Assumptions(
    train_images_per_second=100,
    predict_images_per_second=500,
    least_step_seconds=0.1,
    hidden_share=0.5,
    gpus_per_machine=4,
    bytes_per_gradient=4,
    bandwidth_within=0.1,
    bandwidth_between=0.01,
    cores_per_gpu=2,
    decode_seconds=0.01,
    start_seconds=60,
    pass_seconds=2,
)
JOB = Job(
    training=((40, 32), (60, 32)),
    stages=3,
    predicted=3000,
    num_target=1000,
    parameters=1_000_000,
    checkpoint_minutes=0.0,
)
SERIAL = Serial(choice=lambda count: 0.001 * count, alone=lambda count: 0.01 * count, save=0.5)


def test_estimate_on_one_gpu_by_hand():
    """A step of 32 images takes 0.32 s and loads 0.16 s meanwhile; 3,000 images take 6 s to predict, 15 s to load."""
    cost = estimate(JOB, 1, GIVEN, SERIAL)
    assert (cost.train, cost.gradients, cost.predict) == pytest.approx((32, 0, 6))
    assert cost.loading == pytest.approx(3000 * 0.005 - 6)
    assert cost.serial == pytest.approx(2 * 1 + 3 * 10 + 6 * 0.5), "two choices, three reports, six checkpoints"
    assert cost.starts == pytest.approx(60 + 6 * 2)
    assert cost.total == pytest.approx(32 + 6 + 9 + 35 + 72)


def test_estimate_on_four_gpus_by_hand():
    """Eight images need less than the least step, 0.1 s. A ring sends 2 * 3/4 * 4 MB at 0.1 GB/s: 0.06 s a step, of
    which half of the step's time hides 0.05 s; with a faster link nothing is waited for."""
    cost = estimate(JOB, 4, GIVEN, SERIAL)
    assert (cost.train, cost.gradients, cost.predict) == pytest.approx((10, 1, 1.5))
    assert estimate(JOB, 4, GIVEN.model_copy(update={"bandwidth_within": 0.2}), SERIAL).gradients == 0
    assert cost.loading == pytest.approx(750 * 0.005 - 1.5)
    assert cost.serial == pytest.approx(2 * 0.25 + 30 + 3), "the choice is shared out, rank 0's work is not"


def test_estimate_over_machines_by_hand():
    """Sixteen GPUs, two images each: the slower link carries 2 * 15/16 * 4 MB in 0.75 s, 0.05 s beside the step."""
    assert estimate(JOB, 16, GIVEN, SERIAL).gradients == pytest.approx(70)
    assert estimate(JOB, 17, GIVEN, SERIAL) is None, "fewer than two images for some"


def test_estimate_waits_for_slow_loading_and_counts_timed_checkpoints():
    """0.1 s an image on two cores: 1.6 s a batch beside 0.32 s of training. A checkpoint a second: 32 in 32 s."""
    slow = GIVEN.model_copy(update={"decode_seconds": 0.1})
    assert estimate(JOB, 1, slow, SERIAL).loading == pytest.approx(100 * (1.6 - 0.32) + 3000 * 0.05 - 6)
    often = Job(**{**vars(JOB), "checkpoint_minutes": 1 / 60})
    assert estimate(often, 1, GIVEN, SERIAL).serial == pytest.approx(35 + 32 * 0.5)


def test_stages_with_batches_of_their_own_are_added_up():
    """40 steps of 32 images and 60 of 64: 40 * 0.32 + 60 * 0.64 s. The smaller batch decides how many GPUs may work."""
    job = Job(**{**vars(JOB), "training": ((40, 32), (60, 64))})
    assert estimate(job, 1, GIVEN, SERIAL).train == pytest.approx(12.8 + 38.4)
    assert (job.steps, job.batch, estimate(job, 17, GIVEN, SERIAL)) == (100, 32, None)


def test_speeds_of_a_card_are_those_of_the_first_in_proportion():
    """A V100 trains ResNet-50 in fp32 at 369 images/s, an RTX 3090 at 905 in half precision and 513 in TF32."""
    (v100,) = [card for card in CARDS if card.name.startswith("V100")]
    given = v100.assumptions("fp32")
    assert given.train_images_per_second == pytest.approx(700 * 369 / 905)
    assert given.predict_images_per_second == pytest.approx(1200 * 369 / 513)
    assert v100.assumptions("fp16").train_images_per_second == pytest.approx(700 * 833 / 905)
    assert RTX_3090.assumptions("bf16") == Assumptions()


def test_the_job_is_the_recipe():
    """Round 0: (0.065 * 152,397 + 0.2 * 55,388) / 32 = 655.7 steps; the last one (0.165, 0.5): 1651.2."""
    steps = steps_of_rounds(visda_config(), 152_397, 55_388)
    assert (len(steps), steps[0], steps[-1]) == (20, 656, 1652)
    job = job_of(visda_config())
    assert job.training == ((3 * 4763, 32), (sum(steps), 32)), "152,397 / 32 = 4762.4"
    assert (job.batch, job.stages, job.predicted) == (32, 21, 21 * 55_388)
    # torchvision's count for ResNet-101 without its classifier, then the head and the classifier
    assert job.parameters == 42_500_160 + 2049 * 512 + 513 * 12
    assert job_of(visda_config(256)).steps == 3 * 596 + sum(steps_of_rounds(visda_config(256), 152_397, 55_388))


def test_memory_is_what_is_held_at_once():
    """Two floats of 4 MB at most: the first is given back before the third is made."""

    def work():
        first = torch.ones(1_000_000, device="meta")
        second = first + 1
        second += 1  # in place
        del first
        return second * 2

    assert peak_bytes(work) == 8_000_000


def test_memory_of_a_step_and_of_a_predict_batch_grows_with_the_images():
    """Four times the images leave four times as much for the backward pass.

    Beside it a parameter has 8 bytes of weight and momentum and up to 4 of gradient; in half precision 2 of a copy too.
    """
    config = AdaptationConfig.load(
        "visda_avh.yaml", ["model.weights=none", "model.backbone=resnet18", "transforms.size=64"]
    )
    some, many = (memory_of(config, 12, images, images, "fp32") for images in (64, 256))
    half = memory_of(config, 12, 256, 256, "bf16")
    parameters = job_of(config).parameters / 2**30
    an_image = (many.train - some.train) / 192
    assert 8 * parameters < some.train - 64 * an_image < 12.01 * parameters
    assert half.train == pytest.approx(128 * an_image + 14 * parameters, rel=0.1)
    assert half.predict == many.predict, "predicting is in fp32"
    assert 4 * parameters < some.predict < many.predict < 4 * some.predict


def test_an_estimate_anew_leaves_what_was_measured_and_is_what_stands_in_the_document(tmp_path, capsys):
    path = tmp_path / "scaling.md"
    written = DOCUMENT.read_text(encoding="utf-8")
    path.write_text(written.replace("| 8 | 256 (32) * |", "| 9 | 257 (33) * |"), encoding="utf-8")
    assert tool.main(["--only", "estimate", "--into", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == written
    assert "| 8 | 256 (32) * |" in capsys.readouterr().out


def test_an_estimate_needs_the_measured_tables(tmp_path, capsys):
    path = tmp_path / "scaling.md"
    path.write_text(emptied(DOCUMENT.read_text(encoding="utf-8"))[0], encoding="utf-8")
    assert run_command(lambda: tool.main(["--only", "estimate", "--into", str(path)])) == 2
    assert "no measured table 'scaling-choice' yet" in capsys.readouterr().err


def test_measured_curves_are_read_back_from_the_tables():
    choice, alone, checkpoint = scaling_document.measured_curves(DOCUMENT.read_text(encoding="utf-8"))
    assert choice.sizes == [10_000, 30_000, 100_000, 300_000, 1_000_000] and choice.axis == "N"
    assert alone.sizes == choice.sizes and max(alone.values("seconds")) > max(choice.values("seconds"))
    assert checkpoint.sizes[-1] == 43_555_404


@pytest.mark.parametrize("memory", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_tables_of_the_first_run_are_what_the_configs_and_assumptions_give(memory, monkeypatch):
    """Counting the memory takes half a minute; without it those two columns are not compared."""
    if not memory:
        monkeypatch.setattr(scaling_document, "memory_of", lambda *_: Memory(0, 0))
    written = blocks_of((CHECKOUT / "docs" / "visda.md").read_text(encoding="utf-8"))
    for name, markdown in scaling_document.visda_blocks().items():
        found, there = (
            text if memory else re.sub(r"\| \d+ GiB \| \d+ GiB \|", "", text) for text in (markdown, written[name])
        )
        assert found == there, "python -m benchmarks.run_scaling --only visda --into docs/visda.md"


def test_a_fresh_process_is_another_one_and_its_death_is_an_error(monkeypatch):
    monkeypatch.setattr(measure, "_IMPORTED", [])
    assert measure.in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="was killed, probably because memory ran out"):
        measure.in_fresh_process(os._exit, 1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's mark of the highest memory")
def test_peak_counts_what_a_call_holds_and_gives_back(tmp_path):
    """In a process of its own: one whose malloc keeps its memory has it already."""
    code = "import numpy; from benchmarks.measure import peak_mib\n"
    code += "for mib in (200, 100): print(peak_mib(lambda: numpy.ones(mib << 17)))"
    (tmp_path / "peak.py").write_text(code)
    output, error = Forked(tmp_path / "peak.py").communicate()
    assert list(map(float, output.split())) == pytest.approx([200, 100], abs=4), error


def test_long_work_is_called_once(monkeypatch):
    monkeypatch.setattr(measure, "MOST_SECONDS", 0.0)
    calls = []
    assert measure.median_seconds(lambda: calls.append(1), 5) > 0
    assert len(calls) == 1


def test_a_tiny_run_writes_the_document_and_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(scaling, "NETWORKS", (("digits_cnn", 1, None), ("digits_cnn_wide", 1, 32)))
    monkeypatch.setattr(tool, "run_world", lambda count, *rest: world.measure_world(Ranks(), *rest))
    monkeypatch.setattr(tool, "MOST_PROCESSES", 1)
    path = tmp_path / "scaling.md"
    prose, names = emptied(DOCUMENT.read_text(encoding="utf-8"))
    path.write_text(prose, encoding="utf-8")

    assert tool.main(["--into", str(path), "--scale", "0.001", "--repeats", "1"]) == 0
    written = path.read_text(encoding="utf-8")
    assert emptied(written)[0] == prose, "the prose is as it was"
    sections = blocks_of(written)
    assert sorted(sections) == names == sorted(scaling_document.BLOCKS) and all(sections.values())
    assert "| N | 12 | 30 | 100 | 300 | 1,000 | grows as |" in sections["choice"]
    assert sections["choice"].count("| seconds | ") == 3
    assert sections["rank0"].count(", s | ") == 6 and "other validators, s" in sections["rank0"]
    assert "| 64 | 32 (0.5) |  | not possible |" in sections["estimate"]
    assert len(re.findall(r"\*\*[\d.]+\*\*", sections["estimate"])) == 5
    for name in ("choice", "rest"):
        assert f"](scaling-{name}.png)" in prose
        assert (tmp_path / f"scaling-{name}.png").read_bytes().startswith(b"\x89PNG")
    assert sections["world"].strip() in capsys.readouterr().out


def emptied(document):
    """The document without what its blocks hold, and their names."""
    pattern = r"(<!-- table scaling-(\w+) -->\n).*?(<!-- end scaling-\2 -->)"
    names = sorted(match[2] for match in re.finditer(pattern, document, flags=re.DOTALL))
    return re.sub(pattern, r"\1\3", document, flags=re.DOTALL), names


def blocks_of(document):
    pattern = r"<!-- table scaling-(\w+) -->\n(.*?)<!-- end scaling-\1 -->"
    return dict(re.findall(pattern, document, flags=re.DOTALL))


def test_numbers_keep_three_digits():
    found = [scaling_document.number(value) for value in (0.012345, 1.2345, 99.94, 99.96, 12345.6)]
    assert found == ["0.0123", "1.23", "99.9", "100", "12,346"]
    assert scaling_document.growth("N", -0.001) == "N^0.00" and scaling_document.growth("N", None) == "-"


def test_a_missing_document_is_named_before_anything_is_measured(tmp_path, capsys):
    assert run_command(lambda: tool.main(["--into", str(tmp_path / "none.md")])) == 2
    captured = capsys.readouterr()
    assert "no such document" in captured.err and captured.out == ""


def test_a_document_without_a_place_is_refused_before_anything_is_measured(tmp_path, capsys):
    path = tmp_path / "scaling.md"
    path.write_text(DOCUMENT.read_text(encoding="utf-8").replace("<!-- end scaling-world -->", ""), encoding="utf-8")
    assert run_command(lambda: tool.main(["--into", str(path)])) == 2
    captured = capsys.readouterr()
    assert "no place for table 'scaling-world'" in captured.err and captured.out == ""


@pytest.mark.parametrize(
    "arguments", [["--scale", "0"], ["--scale", "2"], ["--repeats", "0"], ["--fast"], ["--only", "visda"]]
)
def test_wrong_use_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_are_measured():
    found = world.run_world(2, 0.05, 1)
    assert (found.processes, found.batch) == (2, 96)
    assert found.step_seconds > 0 and found.predicted_per_second > 0
    assert len(found.gradient_seconds) == 3 and min(found.gradient_seconds.values()) > 0


@pytest.mark.slow
def test_the_tool_runs_as_it_is_given(tmp_path):
    path = tmp_path / "scaling.md"
    path.write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.run_scaling", "--scale", "0.002", "--repeats", "1", "--into", str(path)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert ended.returncode == 0, ended.stderr
    assert "scale 0.002" in path.read_text(encoding="utf-8")
