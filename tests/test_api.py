"""The Python API: runs from Python, opened runs, and the pieces for a training loop of one's own."""

import inspect
import json
import math
import os
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import uda
from tests.adaptation.test_resume import same_files
from tests.data.trees import make_folders
from tests.generalization.conftest import TINY as TINY_GENERALIZATION
from tests.in_process import adapt
from tests.pretend_device import pretended
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.core.errors import UserError
from uda.core.registry import UnknownNameError
from uda.core.resources import CHECKOUT
from uda.core.yaml_files import ConfigError
from uda.generalization.config import GeneralizationConfig
from uda.generalization.run import GeneralizationRun
from uda.selection.selectors import SELECTORS


@pytest.fixture(scope="module")
def adapted(tiny, tmp_path_factory):
    """A finished run of the tiny config, made by the API."""
    return uda.adapt(tiny, overrides={"output": tmp_path_factory.mktemp("api") / "run"}, log=None)


@pytest.fixture(scope="module")
def by_session(tiny, tmp_path_factory):
    """The folder of the same run, made as the command makes it."""
    folder = tmp_path_factory.mktemp("session") / "run"
    AdaptationRun(AdaptationConfig.load(tiny, [f"output={folder}"])).execute()
    return folder


@pytest.fixture(scope="module")
def photos(tiny):
    """The target's folder of the tiny config: ant, bee, cat and dog, eight images each."""
    return tiny.parent / "photos"


@pytest.fixture(scope="module")
def files(photos):
    return sorted(photos.rglob("*.jpg"))


@pytest.fixture
def tiny_generalization(tmp_path):
    for seed, domain in enumerate(("drawn", "photos", "clay")):
        make_folders(tmp_path / domain, ["ant", "bee", "cat", "dog"], per_class=8, seed=seed)
    path = tmp_path / "three.yaml"
    path.write_text(TINY_GENERALIZATION.format(root=tmp_path))
    return path


# The package


def test_importing_uda_is_light_and_offers_all_names():
    script = (
        "import sys, uda\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'yaml'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "assert set(uda.__all__) <= set(dir(uda))\n"
        "assert not hasattr(uda, 'adopt')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.parametrize("name", uda.__all__)
def test_every_name_is_there_and_documented(name):
    assert name == "__version__" or getattr(uda, name).__doc__


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'uda' has no attribute 'adopt'"):
        _ = uda.adopt


# Runs


def test_a_run_is_the_one_that_the_command_makes(adapted, by_session):
    assert same_files(adapted.folder, by_session)
    assert adapted.results["final"]["class_mean"] > 0.25
    assert adapted.classes == ("ant", "bee", "cat", "dog") and adapted.config.name == "tiny"


def test_a_run_says_what_the_command_says_and_log_and_quiet_decide_where(tiny, in_folder, capsys):
    few = {"self_training.rounds": 1}
    shown = []
    uda.adapt(tiny, overrides=few)
    printed = capsys.readouterr()
    uda.adapt(tiny, seed=1, overrides=few, log=shown.append)
    uda.adapt(tiny, seed=2, overrides=few, log=None)
    assert capsys.readouterr() == ("", "") and printed.err == ""
    logs = [(in_folder / f"runs/tiny/seed{seed}/log.txt").read_text().splitlines() for seed in range(3)]
    kept = [[line.partition("  ")[2] for line in log] for log in logs]
    assert printed.out.splitlines() == kept[0] and "\n".join(shown).splitlines() == kept[1]
    assert [lines[0].partition(",")[0] for lines in kept] == ["run      tiny"] * 3 and len(kept[2]) > 10


def test_a_run_from_python_names_no_command_and_the_settings_that_its_method_does_not_read(tiny, in_folder, capsys):
    """The words in sys.argv are those of pytest or of a notebook's kernel. Overrides may be read only once."""
    words = iter(["method=source_only", "self_training.selector=softmax"])
    run = uda.adapt(tiny, overrides=words)
    assert json.loads((run.folder / "environment.json").read_text())["command"] is None
    assert "note: method 'source_only' does not read self_training.selector" in capsys.readouterr().out.splitlines()
    assert adapt(["--cfg", str(tiny), "method=source_only", "output=by_command"]) == 0
    assert json.loads((in_folder / "by_command" / "environment.json").read_text())["command"] == sys.argv


def test_a_finished_run_is_opened_at_once(tiny, adapted, capsys):
    before = {path: path.stat().st_mtime_ns for path in adapted.folder.rglob("*")}
    again = uda.adapt(tiny, overrides=[f"output={adapted.folder}"])
    assert again.results == adapted.results
    assert f"{adapted.folder} is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in adapted.folder.rglob("*")} == before


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal or a notebook; a job in the background, as CI may be, begins with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_after_an_interruption_the_same_call_resumes(tiny, by_session, tmp_path):
    """Ctrl-C as Python itself takes it, in the second round; another process could resume as well."""
    fcntl = pytest.importorskip("fcntl")
    overrides = {"output": tmp_path / "run"}
    lines = []

    def interrupt(line):
        lines.append(line)
        if line.startswith("     0"):  # the row of round 0
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        uda.adapt(tiny, overrides=overrides, log=interrupt)
    assert caught.type is KeyboardInterrupt
    assert lines[-1].startswith("     0") and not (tmp_path / "run/results.json").exists()
    assert "interrupted; the same call resumes" in (tmp_path / "run/log.txt").read_text()
    script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert fcntl and subprocess.run([sys.executable, "-S", "-c", script, tmp_path / "run/.lock"]).returncode == 0
    lines.clear()
    run = uda.adapt(tiny, overrides=overrides, log=lines.append)
    assert lines[0].startswith(f"resuming {tmp_path / 'run'} from round 0")
    assert same_files(run.folder, by_session)


def test_the_callers_process_stays_as_it_is(tiny, in_folder):
    """Signal handlers and generators, also where a run fails."""
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 (what is tested)
    random.seed(7)
    expected = torch.rand(3), np.random.rand(3), [random.random() for _ in range(3)]  # noqa: NPY002
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    seen = []

    def log(line):
        seen.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    for overrides in ({"self_training.rounds": 1}, {"self_training.portion.start": 0.01, "output": "empty"}):
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002
        random.seed(7)
        if "output" in overrides:
            with pytest.raises(UserError, match="selects no target image"):
                uda.adapt(tiny, overrides=overrides, log=None)
            assert "error: round 0" in (in_folder / "empty/log.txt").read_text()
        else:
            _ = uda.adapt(tiny, overrides=overrides, log=log).network
        found = torch.rand(3), np.random.rand(3), [random.random() for _ in range(3)]  # noqa: NPY002
        assert torch.equal(found[0], expected[0]) and (found[1] == expected[1]).all() and found[2] == expected[2]
    assert seen and all(found == handlers for found in seen)


def test_threads_stay_whatever_the_config_asks_for(tiny, in_folder):
    """They are the process's. The log says what holds."""
    lines, threads = [], torch.get_num_threads()
    run = uda.adapt(tiny, overrides={"self_training.rounds": 1, "runtime.threads": threads + 1}, log=lines.append)
    assert torch.get_num_threads() == threads
    assert any(f"compute  cpu, {threads} thread" in line for line in lines)
    compute = json.loads((run.folder / "environment.json").read_text())["compute"]
    assert compute["threads"] == threads


# Configs


def test_a_config_goes_by_name_path_or_object(adapted, tiny):
    """A call without anything new is the same run; `seed` wins over the overrides'."""
    overrides = {"output": adapted.folder}
    for config in (tiny, str(tiny), adapted.config):
        assert uda.adapt(config, overrides=overrides, log=None).results == adapted.results
    with pytest.raises(UserError, match="seed: 0 -> 3"):
        uda.adapt(adapted.config, seed=3, overrides={"seed": 2}, log=None)
    with pytest.raises(UserError, match="seed: 0 -> 3"):
        uda.adapt(adapted.config, seed=3, overrides="seed=2", log=None)


def test_mistakes_in_overrides_name_the_nearest_key():
    with pytest.raises(ConfigError) as caught:
        uda.adapt("digits_avh", overrides={"self_training.round": 3, "self_training.selector": "avg"})
    lines = str(caught.value).split("\n")
    assert lines[0] == "overrides: self_training.round: unknown key, did you mean 'rounds'?"
    assert lines[1].startswith("overrides: self_training.selector: unknown selector 'avg', did you mean 'avc'?")
    with pytest.raises(ConfigError, match=r"^overrides: 'seed': overrides are written key=value"):
        uda.adapt("digits_avh", overrides=["seed"])
    with pytest.raises(ConfigError, match=r"digits_avg: no such config.*did you mean 'digits_avh.yaml'"):
        uda.adapt("digits_avg")


def test_a_config_of_another_kind_is_refused(adapted):
    with pytest.raises(TypeError, match="must be a GeneralizationConfig, a name or a path; got a AdaptationConfig"):
        uda.generalize(adapted.config)


# Domain generalisation


def test_generalize_gives_a_run_for_each_unseen_domain(tiny_generalization, tmp_path, capsys):
    root = tmp_path
    few = {"training.steps": 3, "training.evaluate_every": 3, "target": None, "output": f"{root}/runs/{{target}}"}
    runs = uda.generalize(tiny_generalization, overrides=few)
    assert list(runs) == [f"{root}/{name}" for name in ("drawn", "photos", "clay")]
    assert [run.results["target"] for run in runs.values()] == list(runs)
    assert "average" in capsys.readouterr().out and list((root / "runs").glob("summary_seed0.json"))
    target = f"{root}/clay"
    words = [f"{key}={value}" for key, value in few.items()]
    words[-2:] = [f"target={target}", f"output={root}/session"]
    GeneralizationRun(GeneralizationConfig.load(tiny_generalization, words)).execute()
    final = "checkpoints/final.safetensors"
    assert (root / "session" / final).read_bytes() == (runs[target].folder / final).read_bytes()


def test_a_run_of_domain_generalisation_predicts_images(tiny_generalization, tmp_path):
    """What it predicts on the unseen domain is what its report says of it."""
    overrides = {"output": tmp_path / "run"}
    ((target, run),) = uda.generalize(tiny_generalization, seed=5, overrides=overrides, log=None).items()
    found = run.predict(target)
    truth = [name.split("/")[0] for name in found.ids]
    right = np.mean([name == own for name, own in zip(found.class_names, truth, strict=True)])
    assert right == run.results["final"]["overall"]
    report = yaml.safe_load((run.folder / "rounds/02/report.json").read_text())
    assert np.array(report["accuracy"]["confusion"]).sum(0).tolist() == np.bincount(found.labels, minlength=4).tolist()


# Opened runs


def test_a_network_predicts_what_the_run_reports(adapted, photos):
    """Class means by hand, from the names of the folders."""
    found = adapted.predict(photos)
    assert len(found) == 32 and found.ids[0] == "ant/ant_0.jpg" and found.classes == adapted.classes
    truth = np.array([found.classes.index(name.split("/")[0]) for name in found.ids])
    assert found.labels.dtype == np.int64 and found.class_names[0] == found.classes[found.labels[0]]
    means = [np.mean(found.labels[truth == k] == k) for k in range(4)]
    assert math.isclose(np.mean(means), adapted.results["final"]["class_mean"])
    odds = np.exp(found.logits.astype(np.float64))
    np.testing.assert_allclose(found.probabilities, odds / odds.sum(1, keepdims=True), rtol=1e-12)
    logits = found.features @ found.weight.T + adapted.network.classifier.bias.detach().numpy()
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)


def test_images_in_every_form_give_the_same(adapted, photos, files, monkeypatch):
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    forms = {
        "array": pixels,
        "tensor": channels_first,
        "floats": channels_first / 255,
        "half": (channels_first / 255).half(),
        "float array": pixels / 255,
        "PIL": [Image.fromarray(image) for image in pixels],
    }
    expected = adapted.predict(pixels[:, ::1])
    assert expected.ids == [str(number) for number in range(32)]
    for name, form in forms.items():
        assert np.array_equal(adapted.predict(form).logits, expected.logits), name
    by_folder = adapted.predict(photos)
    assert by_folder.ids == [str(file.relative_to(photos)) for file in files]
    listed = adapted.predict(files[::-1])
    assert listed.ids == [str(file) for file in files[::-1]]
    np.testing.assert_array_equal(listed.logits[::-1], by_folder.logits)
    monkeypatch.chdir(photos)
    np.testing.assert_allclose(adapted.predict("ant/ant_0.jpg").logits, by_folder.logits[:1], rtol=1e-5)
    np.testing.assert_allclose(adapted.predict(Image.fromarray(pixels[0])).logits, expected.logits[:1], rtol=1e-5)
    # Decoders may differ by a level or two.
    np.testing.assert_allclose(by_folder.logits, expected.logits, atol=0.1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "I;16", "F", "CMYK"])
def test_pil_images_are_read_as_files_are(adapted, tmp_path, mode):
    """By the run's rules for transparency and for white."""
    grey = Image.fromarray(np.arange(40 * 32, dtype=np.uint16).reshape(32, 40) * 50)
    image = Image.new("RGBA", (40, 32), (200, 30, 30, 90)) if mode in ("RGBA", "LA") else None
    image = image or (grey if mode == "I;16" else Image.linear_gradient("L").resize((40, 32)))
    image = image.convert(mode)
    path = tmp_path / f"image.{'tif' if mode in ('F', 'CMYK') else 'png'}"
    image.save(path)
    np.testing.assert_array_equal(adapted.predict([image]).logits, adapted.predict(path).logits)


@pytest.mark.parametrize(
    ("images", "kind", "said"),
    [
        ("nowhere", UserError, "images: no such file or folder: nowhere"),
        (".", UserError, "images: there are none in ."),
        ([], UserError, "images: there are none"),
        (np.zeros((0, 32, 32, 3), np.uint8), UserError, "images: there are none"),
        (["a.png"], UserError, "a.png: cannot be read: No such file"),
        (
            torch.full((1, 3, 32, 32), -1.0),
            UserError,
            "must lie in 0..1, got -1 to -1; pass images that are already normalised",
        ),
        (torch.full((1, 3, 32, 32), math.nan), UserError, "must lie in 0..1, got nan"),
        (np.zeros((1, 32, 32, 3), np.int64), ValueError, "must be uint8 or floating, got torch.int64"),
        (np.zeros((32, 32, 3), np.uint8), ValueError, r"must be \(N, H, W, C\), got \(32, 32, 3\)"),
        (torch.zeros(3, 32, 32), ValueError, r"must be \(N, C, H, W\), got \(3, 32, 32\)"),
        ([np.zeros((32, 32, 3), np.uint8)], TypeError, "a list must hold paths or PIL images, not ndarray; stack"),
        (torch.zeros(1, 2, 32, 32), UserError, "images have 2 channels, but transforms.mean has 3 values"),
    ],
)
def test_images_that_are_none(adapted, in_folder, images, kind, said):
    with pytest.raises(kind, match=said):
        adapted.predict(images)


def test_a_finished_run_is_opened_by_its_folder(adapted, photos, tmp_path, monkeypatch):
    run = uda.load_run(adapted.folder, device="cpu")
    assert run.results == adapted.results and run.config == adapted.config and run.classes == adapted.classes
    np.testing.assert_array_equal(run.predict(photos).logits, adapted.predict(photos).logits)
    assert not run.network.training and repr(run) == f"TrainedRun({str(adapted.folder)!r})"
    monkeypatch.chdir(adapted.folder.parent)
    relative = uda.load_run("run")
    monkeypatch.chdir(tmp_path)
    assert relative.network is relative.network and relative.folder == adapted.folder


def test_other_weights_of_a_run_are_opened_by_name(adapted, photos, tmp_path):
    """Of an unfinished run too. The table of what they predict is written by name as well."""
    source = uda.load_run(adapted.folder, weights="source")
    assert source.weights == "source" and adapted.weights == "final"
    assert not np.array_equal(source.predict(photos).logits, adapted.predict(photos).logits)
    with pytest.raises(UserError, match=r"`weights`: .* no weights 'sorce', did you mean 'source'\? \(it has final, l"):
        uda.load_run(adapted.folder, weights="sorce")
    (tmp_path / "checkpoints").mkdir()
    for name in ("config.yaml", "checkpoints/source.safetensors"):
        (tmp_path / name).write_bytes((adapted.folder / name).read_bytes())
    begun = uda.load_run(tmp_path, weights="source")
    assert np.array_equal(begun.predict(photos).logits, source.predict(photos).logits)
    with pytest.raises(UserError, match=r"not a finished run: there is no results.json; `weights` may be source$"):
        uda.load_run(tmp_path)
    with pytest.raises(UserError, match=r"not a finished run: there is no results.json"):
        _ = begun.results
    begun.predict(photos).write(tmp_path / "found.csv")
    assert (tmp_path / "found.csv").read_text().count("\n") == 33


def test_a_supervised_run_is_opened_too(tmp_path):
    from tests.hardness.conftest import TINY
    from uda.hardness.dynamics.config import SupervisedConfig
    from uda.hardness.dynamics.run import SupervisedRun

    for seed, part in enumerate(("train", "test")):
        make_folders(tmp_path / part, ["ant", "bee"], per_class=4, seed=seed)
    (tmp_path / "tiny.yaml").write_text(TINY.format(root=tmp_path))
    words = ["human.file=null", "training.epochs=1", f"output={tmp_path}/run", "report.page=false"]
    SupervisedRun(SupervisedConfig.load(tmp_path / "tiny.yaml", words)).execute()
    run = uda.load_run(tmp_path / "run")
    assert run.predict(tmp_path / "test").classes == ("ant", "bee") and "final" in run.results


def test_folders_that_are_no_finished_run(adapted, tiny, tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: there is no config\.yaml"):
        uda.load_run(tmp_path)
    config = (adapted.folder / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(UserError, match=r"is not a finished run: there is no results.json"):
        uda.load_run(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results.json is broken"):
        uda.load_run(tmp_path)
    for content in ("future: 1\n" + config, "[1, 2]", ""):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(UserError, match=r"is not the config of a run, or is from another version of uda"):
            uda.load_run(tmp_path)


# Pieces


@pytest.fixture
def values():
    """Features (6, 3), logits (6, 4), weight (4, 3) and labels (6,)."""
    generator = torch.Generator().manual_seed(1)
    features, weight = (torch.randn(*shape, generator=generator) for shape in ((6, 3), (4, 3)))
    return features, features @ weight.T, weight, torch.tensor([0, 1, 2, 3, 0, 1])


#: x at 0 and 90 degrees to the two class weights, whatever the norms.
RIGHT_ANGLES = np.array([[2.0, 0.0]]), np.array([[3.0, 0.0], [0.0, 0.5]])


def test_values_by_hand():
    """AVH 0 / (pi/2) and 1, AVC pi and pi/2 of 3 pi / 2; logits 0 and -1 at scale 2/pi lose log(1 + 1/e)."""
    features, weight = RIGHT_ANGLES
    for label in (0, 1):
        np.testing.assert_allclose(uda.avh(features, weight, np.array([label])), [label], atol=1e-6)
        lost = math.log(1 + math.exp(-1)) + label
        assert math.isclose(uda.avh_loss(features, weight, np.array([label]), scale=2 / math.pi), lost, rel_tol=1e-6)
    np.testing.assert_allclose(uda.avc(features, weight), [[2 / 3, 1 / 3]], atol=1e-6)
    np.testing.assert_allclose(uda.score(features, np.zeros((1, 2)), weight), [[2 / 3, 1 / 3]], atol=1e-6)
    soft = np.array([[0.25, 0.75]])
    lost = math.log(1 + math.exp(-1)) + 0.75
    assert math.isclose(uda.avh_loss(features, weight, soft, scale=2 / math.pi), lost, rel_tol=1e-6)


def test_selection_by_hand():
    """Four images are surest of class 0, two of class 1: half of them is two and one. The last two change class.

    0.55 / 0.9 is less than 0.5 / 0.8, and neither reaches 1; 0.4 / 0.9 is less than 0.6 / 0.8.
    """
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9], [0.5, 0.55], [0.6, 0.4]])
    chosen = uda.select(scores, portion=0.5)
    assert chosen.thresholds.tolist() == [0.8, 0.9]
    assert chosen.labels.tolist() == [0, 0, 0, 1, 0, 0]
    assert chosen.selected.tolist() == [True, True, False, True, False, False]
    assert chosen.scores.tolist() == [0.9, 0.8, 0.7, 0.9, 0.5, 0.6]
    np.testing.assert_allclose(chosen.ratios, [0.9 / 0.8, 1, 0.7 / 0.8, 1, 0.5 / 0.8, 0.6 / 0.8])
    as_tensors = uda.select(torch.from_numpy(scores), portion=0.5)
    for name in ("labels", "selected", "thresholds", "scores", "ratios"):
        tensor, array = getattr(as_tensors, name), getattr(chosen, name)
        assert isinstance(tensor, torch.Tensor) and isinstance(array, np.ndarray)
        np.testing.assert_array_equal(tensor.numpy(), array)
    nothing = uda.select(scores, portion=0.1)
    assert not nothing.selected.any() and np.isinf(nothing.thresholds).all()


@pytest.mark.parametrize("selector", sorted(SELECTORS))
def test_scores_are_the_selectors_in_the_kind_that_came_in(values, selector):
    features, logits, weight, _ = values
    expected = SELECTORS[selector](features, logits, weight)
    found = uda.score(features, logits, weight.requires_grad_(), selector)
    assert torch.equal(found, expected) and found.dtype == expected.dtype and not found.requires_grad
    (found * torch.ones(4, requires_grad=True)).sum().backward()  # in a graph of the user's own
    arrays = [tensor.detach().numpy() for tensor in (features, logits, weight)]
    found = uda.score(*arrays, selector=selector)
    assert isinstance(found, np.ndarray) and np.array_equal(found, expected.numpy())


def test_arrays_may_lie_in_any_way(values):
    features, _, weight, labels = (tensor.numpy() for tensor in values)
    expected = uda.avh(features, weight, labels)
    features = np.asfortranarray(features)
    features.flags.writeable = False
    assert np.array_equal(uda.avh(features, weight[::-1][::-1], labels.astype(np.int32)), expected)
    np.testing.assert_allclose(uda.avh(features.tolist(), weight, labels.tolist()), expected, rtol=1e-6)


def test_tensors_have_gradients(values):
    features, _, weight, labels = values
    features = features.double().requires_grad_()
    weight = weight.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: uda.avh_loss(x, w, labels, scale=3.0), (features, weight))
    assert torch.autograd.gradcheck(lambda x, w: uda.avh(x, w, labels), (features, weight))
    assert torch.autograd.gradcheck(uda.avc, (features, weight))


def test_the_loss_is_the_one_of_the_configs(values):
    from uda.models.losses import LOSSES

    features, _, weight, labels = values
    loss = LOSSES["avh"]()
    expected = loss(loss.logits(features, weight, None), torch.nn.functional.one_hot(labels, 4).float())
    torch.testing.assert_close(uda.avh_loss(features, weight, labels), expected)


def test_mistakes_are_named(values):
    features, logits, weight, labels = values
    with pytest.raises(UnknownNameError, match="unknown selector 'avg', did you mean 'avc'"):
        uda.score(features, logits, weight, selector="avg")
    with pytest.raises(TypeError, match="features, weight: give tensors or NumPy arrays, not both"):
        uda.avc(features, weight.numpy())
    with pytest.raises(ValueError, match="need the same D"):
        uda.avc(features, weight[:, :2])
    with pytest.raises(ValueError, match=r"labels must lie in 0..3, got 0..4"):
        uda.avh(features, weight, labels + (labels == 3))
    with pytest.raises(ValueError, match="portion must lie in"):
        uda.select(uda.avc(features, weight), portion=20)
    with pytest.raises(ValueError, match="rows of scores contain NaN or have no finite largest score above 0"):
        uda.select(-uda.avc(features, weight), portion=0.2)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_tensors_of_a_device_stay_there(values, kind):
    """But for double precision, which MPS does not have: its scores come on the CPU, its thresholds in float32."""
    features, logits, weight, labels = values

    def call(features, logits, weight, labels):
        found = {name: uda.score(features, logits, weight, name) for name in sorted(SELECTORS)}
        found |= {"avh": uda.avh(features, weight, labels), "avh_loss": uda.avh_loss(features, weight, labels)}
        chosen = uda.select(uda.avc(features, weight), portion=0.5)
        return found | {name: getattr(chosen, name) for name in chosen.__dataclass_fields__}

    expected = call(features, logits, weight, labels)
    with pretended(kind) as device:
        found = call(*(tensor.to(kind) for tensor in values))
        for name, tensor in found.items():
            in_double = kind == "mps" and tensor.dtype == torch.float64
            assert tensor.device.type == ("cpu" if in_double else kind), name
            assert not in_double or (name in SELECTORS and name not in ("avc", "cosine")), name
        features = features.to(kind).requires_grad_()
        uda.avh_loss(features, weight.to(kind), labels.to(kind)).backward()
        assert device.holds(features.grad) and features.grad.abs().sum().cpu() > 0
        found = {name: tensor.detach().cpu() for name, tensor in found.items()}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.to(expected[name].dtype), expected[name], rtol=1e-6, atol=1e-7)


# The page


def test_the_page_names_what_there_is():
    """Every name of the package and no other, and the signatures as they are."""
    text = (CHECKOUT / "docs" / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\buda\.(\w+)", text))
    assert named == set(uda.__all__) - {"__version__", "ImagePredictions", "Selection", "TrainedRun"}
    for name, given in re.findall(r"^\| `uda\.(\w+)\((.*?)\)`", text, re.MULTILINE):
        parameters = inspect.signature(getattr(uda, name)).parameters.values()
        empty = inspect.Parameter.empty
        wanted = [p.name if p.default is empty else f"{p.name}={p.default!r}".replace("'", '"') for p in parameters]
        assert given.split(", ") == wanted, name
    for attribute in re.findall(r"`run\.(\w+)", text):
        assert hasattr(uda.TrainedRun, attribute) or attribute in ("folder", "config"), attribute
