"""The moving average of weights: its values by hand, what it does in runs of every kind, and resuming."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.adaptation.test_run import cut_after_every_save, read_results, same_end
from tests.forked import forked_job
from tests.in_process import adapt
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.adaptation.work import work_of
from uda.core.yaml_files import ConfigError
from uda.models.backbones import batch_norms
from uda.models.network import Network
from uda.models.weights import load_network
from uda.training.engine import Engine
from uda.training.settings import EmaSettings, RuntimeSettings
from uda.training.teacher import Teacher


def network(value=0.0):
    """Weights, biases and running means are all `value`."""
    found = Network(nn.Flatten(), 3, 2, head=4, head_batch_norm=True)
    with torch.no_grad():
        for tensor in [*found.parameters(), *found.buffers()]:
            tensor.fill_(value)
    return found


def values(teacher):
    """The one value of all floating-point tensors of the teacher."""
    state = {name: tensor for name, tensor in teacher.network.state_dict().items() if "num_batches" not in name}
    found = {float(entry) for tensor in state.values() for entry in tensor.flatten()}
    assert len(found) == 1
    return found.pop()


def test_the_average_of_a_fixed_decay():
    """From 0, with decay 0.75, after 8: 2; after 4: 0.75 * 2 + 0.25 * 4 = 2.5."""
    teacher = Teacher(network(0.0), EmaSettings(decay=0.75, warm_up=False))
    for value, expected in ((8.0, 2.0), (4.0, 2.5)):
        student = network(value)
        teacher.follow(student)
        assert values(teacher) == expected
        assert teacher.network.head[1].num_batches_tracked == value, "a counter is copied"


def test_in_the_warm_up_the_teacher_is_the_mean_of_all_networks_so_far():
    """With decay 0.75 for four steps, and then 0.75 * mean + 0.25 * new."""
    teacher = Teacher(network(100.0), EmaSettings(decay=0.75))
    students = [1.0, 5.0, 9.0, 3.0]
    for step, value in enumerate(students, 1):
        teacher.follow(network(value))
        assert float(teacher.network.weight[0, 0]) == pytest.approx(np.mean(students[:step]), rel=1e-6)
    teacher.follow(network(8.5))
    assert float(teacher.network.head[1].running_mean[0]) == pytest.approx(0.75 * 4.5 + 0.25 * 8.5, rel=1e-6)


def test_a_teacher_is_a_copy_that_gets_no_gradients():
    student = network(1.0)
    teacher = Teacher(student, EmaSettings(decay=0.5))
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    before = copy.deepcopy(student.state_dict())
    teacher.network.classifier.weight.fill_(7.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_adabn_gives_each_network_its_own_statistics():
    student = network(0.0)
    engine = Engine(student, RuntimeSettings(device="cpu"), log=None)
    engine.begin_teacher(EmaSettings(decay=0.5))
    with torch.no_grad():
        student.head[0].bias.fill_(2.0)
        engine.teacher.network.head[0].bias.fill_(6.0)
    engine.adapt_batch_norm([torch.zeros(4, 3, 1, 1), torch.zeros(2, 3, 1, 1)])
    assert student.head[1].running_mean.tolist() == [2.0] * 4
    assert engine.teacher.network.head[1].running_mean.tolist() == [6.0] * 4


# In runs


EMA, ADABN = "training.ema.decay=0.9", "self_training.adapt_batch_norm=true"


def run(tiny, folder, *overrides):
    found = AdaptationRun(AdaptationConfig.load(tiny, [f"output={folder}", *overrides]))
    found.execute()
    return found


def logits(network, images):
    network.eval()
    with torch.no_grad():
        return network(images).logits


def test_the_teacher_is_the_average_of_the_students_of_all_rounds(tiny, tmp_path, monkeypatch):
    """It begins with the source model, and the rounds do not interrupt it. Its weights are the final ones."""
    students = []
    follow = Teacher.follow
    monkeypatch.setattr(
        Teacher, "follow", lambda self, net: students.append(copy.deepcopy(net.weight.detach())) or follow(self, net)
    )
    found = run(tiny, tmp_path / "run", EMA, "self_training.rounds=2", "self_training.steps=3")
    assert len(students) == 6 and found.engine.teacher.steps == 6
    assert torch.allclose(found.engine.teacher.network.weight, torch.stack(students).mean(0), atol=1e-6)
    saved = copy.deepcopy(found.engine.network)
    load_network(saved, str(tmp_path / "run"), found.description)
    assert torch.equal(saved.weight, found.engine.teacher.network.weight)
    assert not torch.equal(saved.weight, found.engine.network.weight)


def test_who_is_evaluated_and_who_gives_labels(tiny, tmp_path):
    """A decay of 0 makes the teacher the student. A teacher that only looks on changes nothing of the run."""
    plain = run(tiny, tmp_path / "plain")
    same = run(tiny, tmp_path / "same", "training.ema.decay=0")
    looks_on = ("training.ema.evaluated=student", "training.ema.pseudo_labels=student")
    aside = run(tiny, tmp_path / "aside", EMA, *looks_on)
    taught = run(tiny, tmp_path / "taught", EMA, "training.ema.evaluated=student")
    told = [read_results(found.folder.path) for found in (plain, same, aside, taught)]
    keys = ("source_only", "final", "rounds")
    assert all(told[0][key] == told[1][key] == told[2][key] for key in keys)
    assert told[0]["source_only"] == told[3]["source_only"]
    assert told[0]["rounds"][0]["selected"] == told[3]["rounds"][0]["selected"], "the teacher is the source model here"
    assert told[0]["rounds"][-1] != told[3]["rounds"][-1]


def test_predict_passes_count_in_the_work(tiny):
    """Labels of another network than the evaluated one take a predict pass of their own in each round."""
    load = AdaptationConfig.load
    plain = work_of(load(tiny), 32, 32)
    both = work_of(load(tiny, [EMA]), 32, 32)
    apart = work_of(load(tiny, [EMA, "training.ema.pseudo_labels=student"]), 32, 32)
    assert both == plain and apart.predicted - plain.predicted == 32 * plain.reports
    alone, taught = (work_of(load(tiny, [*words, ADABN]), 32, 32) for words in ([], [EMA]))
    assert taught.predicted - alone.predicted == 3 * 32, "AdaBN of the teacher, before round 0 and after both rounds"


@pytest.mark.parametrize(
    "overrides", [(), ("training.ema.pseudo_labels=student", "self_training.adapt_batch_norm=true")]
)
def test_a_run_with_a_teacher_resumes_exactly(tiny, tmp_path, monkeypatch, overrides):
    words = [EMA, "training.ema.warm_up=false", *overrides]
    run(tiny, tmp_path / "whole", *words)
    folder = tmp_path / "cut"
    cut_after_every_save(monkeypatch, folder, lambda: run(tiny, folder, *words))
    assert same_end(folder, tmp_path / "whole")


JOB = """\
import json, sys
import torch
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.core.distributed import start

config, folder = sys.argv[1:]
with start() as ranks:
    words = [f"output={folder}/run", "training.ema.decay=0.9", "self_training.steps=3"]
    run = AdaptationRun(AdaptationConfig.load(config, words), ranks=ranks)
    run.execute()
    tensors = [tensor for tensor in run.engine.teacher.network.state_dict().values() if tensor.is_floating_point()]
    teacher = torch.cat([tensor.double().flatten() for tensor in tensors]).tolist()
    with open(f"{folder}/{ranks.rank}.json", "w") as file:
        json.dump({"teacher": teacher, "statistics": len(run.engine.running_statistics())}, file)
"""


def test_two_processes_have_the_same_teacher_in_the_end(tiny, tmp_path):
    """Also its BatchNorm statistics, which each process averages for itself within an epoch."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    codes, output = forked_job(2, script, tiny, tmp_path)
    assert codes == [0, 0], output
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    one = run(tiny, tmp_path / "one", "training.ema.decay=0.9", "self_training.steps=3", "runtime.accumulate=2")
    assert first["statistics"] == 2 * len(batch_norms(one.engine.network)) * 2
    tensors = [tensor for tensor in one.engine.teacher.network.state_dict().values() if tensor.is_floating_point()]
    alone = torch.cat([tensor.double().flatten() for tensor in tensors])
    assert torch.allclose(alone, torch.tensor(first["teacher"], dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("method", ["mcd", "shot", "fixmatch"])
def test_methods_without_rounds_have_a_teacher_too(tiny, tmp_path, method):
    """MCD has further heads, SHOT makes labels, FixMatch compares views."""
    lengths = ("adaptation.steps=4", "adaptation.evaluate_every=2", "adaptation.batch={source: 8, target: 8}")
    batch = ("adaptation.batch.source=0",) if method == "shot" else ()
    strong = ("adaptation.strong={flip: true}",) if method == "fixmatch" else ()
    found = run(tiny, tmp_path / "run", EMA, f"method={method}", *lengths, *batch, *strong)
    assert found.engine.teacher.steps == 4
    assert not torch.equal(found.engine.teacher.network.head[0].weight, found.engine.network.head[0].weight)


def test_the_plan_and_the_page_tell_of_a_teacher(tiny, tmp_path, capsys):
    words = ["--cfg", str(tiny), f"output={tmp_path / 'run'}", EMA, "report.page=true"]
    assert adapt(words) == 0
    told = "moving average of the weights, decay 0.9 after a warm-up; reports describe the teacher, the teacher gives"
    assert f"teacher  {told}" in capsys.readouterr().out
    assert told in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["training.ema.warm_up=false"], "training.ema: .*warm_up: there is no teacher; set decay too"),
        (["training.ema.decay=1"], "training.ema.decay: .*less than 1"),
        (["training.ema.decoy=0.9"], "did you mean 'decay'"),
    ],
)
def test_settings_that_cannot_be(tiny, words, told):
    with pytest.raises(ConfigError, match=told):
        AdaptationConfig.load(tiny, words)
    assert math.isclose(AdaptationConfig.load(tiny, [EMA]).ema.decay, 0.9)
