"""A run with several selectors: its branches are ordinary runs, and it becomes the one that the validator prefers."""

import json
import shutil

import numpy as np
import pytest
import yaml

import uda
from tests.adaptation.test_resume import records_of, same_files
from tests.adaptation.test_run import cut_after_every_save, read_results, without_times
from tests.forked import forked_job
from tests.in_process import adapt
from uda.adaptation import selector_runs
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.page import adaptation_page
from uda.adaptation.results import choose_selector
from uda.adaptation.work import work_of
from uda.cli.main import main
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT
from uda.kinds import kind_of
from uda.report.run_record import read_run_record
from uda.run_pages import config_of
from uda.tables.recipe import digest
from uda.training.engine import Engine
from uda.training.session import Session

BOTH = "self_training.selector=[softmax,avc]"
#: Figures of a run with several selectors that are not those of the kept run.
OF_ALL = ("selectors", "steps")


@pytest.fixture(scope="module")
def start(tiny):
    """Run the tiny config by the command line: its exit code."""
    return lambda folder, *words: adapt(["--cfg", str(tiny), f"output={folder}", *words])


@pytest.fixture(scope="module")
def both(tmp_path_factory, start):
    """A finished run with two selectors, with its pages and maps; and what was trained for it, stage by stage."""
    folder, trained = tmp_path_factory.mktemp("both") / "run", []
    fit = Engine.fit

    def remember(engine, *arguments, label, **others):
        trained.append(label)
        return fit(engine, *arguments, label=label, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "fit", remember)
        assert start(folder, BOTH, "report.page=true", "report.map=pca", "report.loggers=[tensorboard]") == 0
    return folder, trained


@pytest.fixture(scope="module")
def alone(tmp_path_factory, start):
    """The ordinary run of each selector."""
    folder = tmp_path_factory.mktemp("alone")
    for name in ("softmax", "avc"):
        assert start(folder / name, f"self_training.selector={name}") == 0
    return folder


@pytest.fixture
def copied(both, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(both[0], tmp_path / "run")


def same_branches(folder, alone):
    """Each branch equals the ordinary run of its selector."""
    return all(same_files(folder / "selectors" / name, alone / name) for name in ("softmax", "avc"))


def test_a_branch_equals_the_run_of_its_selector(both, alone):
    folder, trained = both
    assert same_branches(folder, alone)
    assert (folder / "selectors/avc/report.html").is_file() and list((folder / "selectors/avc/tb").glob("events.*"))
    assert trained == ["source", *(f"{name}, round {number}" for name in ("softmax", "avc") for number in (0, 1))]


def test_the_run_becomes_the_branch_with_the_better_score(both, alone):
    folder, _ = both
    results = read_results(folder)
    choice = results["selectors"]
    scores = {name: run["score"] for name, run in choice["runs"].items()}
    assert list(scores) == ["softmax", "avc"] and choice["validator"] == "im"
    assert scores == {name: read_results(alone / name)["rounds"][-1]["validators"]["im"] for name in scores}
    kept = alone / choice["kept"]
    assert choice["kept"] == results["selector"] == max(scores, key=scores.get)
    of_kept = read_results(kept)
    assert {key: results[key] for key in results if key not in OF_ALL} == {
        key: of_kept[key] for key in of_kept if key not in OF_ALL
    }
    assert of_kept["selectors"] is None and results["steps"] == 4 + 2 * 6, "steps of the source and of both"
    for name, run in choice["runs"].items():
        assert run["final"] == read_results(alone / name)["final"] and run["steps"] == 4 + 6
    assert without_times(records_of(folder)) == without_times(records_of(kept))
    names = [f"checkpoints/{name}.safetensors" for name in ("final", "label_free", "source")]
    names += ["predictions.csv", *(f"rounds/0{number}/pseudo_labels.csv" for number in (0, 1))]
    names += [f"rounds/{name}/images.parquet" for name in ("source", "00", "01")]
    for name in names:
        assert (folder / name).read_bytes() == (kept / name).read_bytes(), name
    branch = folder / choice["runs"][kept.name]["folder"]
    assert (folder / "map.parquet").read_bytes() == (branch / "map.parquet").read_bytes()


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0.1, 0.2), "avc"),
        ((0.2, 0.1), "softmax"),
        ((0.2, 0.2), "softmax"),
        ((None, 0.1), "avc"),
        ((None, None), "softmax"),
    ],
)
def test_the_highest_score_is_kept_and_the_first_of_equal_ones(copied, scores, kept):
    """No figure but the score has a part in it: accuracies stay as they are."""
    for name, score in zip(("softmax", "avc"), scores, strict=True):
        path = copied / "selectors" / name / "rounds/01/report.json"
        report = json.loads(path.read_text())
        report["validators"]["im"] = score
        path.write_text(json.dumps(report))
    config = AdaptationConfig.load(copied / "config.yaml", [f"output={copied}"], saved=True)
    assert choose_selector(config)["kept"] == kept


def test_it_stays_a_run_folder(both, alone, copied, tmp_path):
    folder, _ = both
    record = read_run_record(folder)
    assert record.finished and record.trusted and not record.problems and len(record.reports) == 2
    assert record.map is not None and record.choice == json.loads((folder / "results.json").read_text())["selectors"]
    assert kind_of(yaml.safe_load((folder / "config.yaml").read_text())) is AdaptationConfig
    run = uda.load_run(folder)
    images = np.full((1, 24, 24, 3), 0.5, np.float32)
    kept = uda.load_run(alone / run.results["selector"])
    assert (run.predict(images).logits == kept.predict(images).logits).all()
    results = (copied / "results.json").read_text()
    (copied / "report.html").unlink()
    assert main(["report", str(copied)]) == 0
    assert (copied / "results.json").read_text() == results
    assert "<h2>Selectors</h2>" in (copied / "report.html").read_text()
    assert main(["report", str(folder), str(alone / "softmax"), "--out", str(tmp_path / "comparison.html")]) == 0


def test_the_page_tells_what_was_kept_and_why(both):
    folder, _ = both
    choice = read_results(folder)["selectors"]
    page = (folder / "report.html").read_text()
    assert f"selector {choice['kept']} (chosen from softmax, avc)" in page[: page.index("<h2")], "at the top"
    section = page[page.index("<h2>Selectors</h2>") : page.index('<h2 id="provenance">')]
    why = "because its last model has the best im, a score without target labels"
    assert f"Selector {choice['kept']} was kept, {why}: " in section
    for name, run in choice["runs"].items():
        assert f'<a href="selectors/{name}/report.html">' in section
        assert f"<td>{run['score']:.3f}</td>" in section
        assert f"<td>{100 * run['final']['class_mean']:.2f}</td>" in section
    assert section.count("<svg") == 2, "the score and the class mean by round"


def test_without_target_labels(start, tmp_path, capsys):
    folder = tmp_path / "run"
    assert start(folder, BOTH, "data.target_labels=none") == 0
    choice = read_results(folder)["selectors"]
    assert {run["final"]["class_mean"] for run in choice["runs"].values()} == {None}
    record = read_run_record(folder)
    (section,) = adaptation_page(record, config_of(record)).extra
    assert [column.title for column in section["columns"]] == ["selector", "im, last round", "time"]
    assert [title for title, _ in section["figures"]] == ["Label-free score 'im'"]
    assert f"selector {choice['kept']} was kept" in " ".join(capsys.readouterr().out.split())


def test_class_vectors_are_measured_once(start, tmp_path, capsys):
    """The untouched network's record goes to the branches with the source model."""
    np.savez(tmp_path / "vectors.npz", weight=np.eye(4, 128, dtype=np.float32), classes=["ant", "bee", "cat", "dog"])
    words = [f"model.classifier={tmp_path / 'vectors.npz'}", "model.head=null"]
    assert start(tmp_path / "both", BOTH, *words) == 0
    assert "warning: /" not in capsys.readouterr().out, "no record had to be written again"
    for name in ("softmax", "avc"):
        assert start(tmp_path / name, f"self_training.selector={name}", *words) == 0
    assert same_branches(tmp_path / "both", tmp_path)
    results = read_results(tmp_path / "both")
    assert results["zero_shot"] and results["zero_shot"] == read_results(tmp_path / "avc")["zero_shot"]


# Resuming


def test_a_kill_after_every_checkpoint(start, both, alone, tmp_path, monkeypatch):
    """The whole run writes three checkpoints, and each branch one a step."""
    folder = tmp_path / "run"
    assert cut_after_every_save(monkeypatch, folder, lambda: start(folder, BOTH)) > 15
    assert same_branches(folder, alone)
    assert same_files(folder, both[0])


@pytest.mark.parametrize("files", [0, 4, 5, 9, 10, 13])
def test_a_kill_while_files_are_copied(start, both, alone, tmp_path, monkeypatch, files):
    """For both branches and for the run at its end."""
    folder, copied, write = tmp_path / "run", [], selector_runs.write_bytes

    def write_and_die(*arguments):
        if len(copied) == files:
            copied.clear()
            raise KeyboardInterrupt
        copied.append(arguments)
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(selector_runs, "write_bytes", write_and_die)
        assert start(folder, BOTH) == 130
    assert start(folder, BOTH) == 0
    assert same_branches(folder, alone) and same_files(folder, both[0])


def test_an_interrupted_run_says_where_it_is_and_shows_it(start, both, tmp_path, monkeypatch, capsys):
    folder, words = tmp_path / "run", [BOTH, "report.page=true"]
    fit = Engine.fit

    def fit_and_leave(engine, *arguments, label, **others):
        if label == "avc, round 1":
            raise KeyboardInterrupt
        return fit(engine, *arguments, label=label, **others)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "fit", fit_and_leave)
        assert start(folder, *words) == 130
    assert "saved at selector avc, round 1, 0 epochs done; the same command resumes" in capsys.readouterr().err
    page = (folder / "report.html").read_text()
    assert "This run is not finished: round 3 of 4 done." in page
    assert '<a href="selectors/avc/report.html"><bdi>avc</bdi></a></th><td>1</td>' in page
    assert main(["report", str(folder)]) == 0
    assert '<a href="selectors/softmax/report.html"><bdi>softmax</bdi></a></th><td>2</td>' in page
    with pytest.raises(UserError, match="is not a finished run"):
        uda.load_run(folder)
    told = (folder / "log.txt").read_text()
    assert f"{folder / 'selectors/softmax'} starts from the source model" in told and "resuming" not in told
    capsys.readouterr()
    assert start(folder, *words) == 0
    out = capsys.readouterr().out
    assert f"resuming {folder} from the source model\n" in out
    assert f"{folder / 'selectors/softmax'} is finished" in out
    assert f"resuming {folder / 'selectors/avc'} from round 1, 0 epochs done" in out
    assert same_files(folder, both[0])
    assert start(folder, *words) == 0
    assert f"{folder} is finished" in capsys.readouterr().out


def test_a_branch_that_was_deleted_is_run_again(start, copied, both, alone):
    """Before the choice it gets the source model. After it, it trains its own, which is the same."""
    shutil.rmtree(copied / "selectors/avc")
    (copied / "results.json").unlink()
    assert start(copied, BOTH) == 0, "the choice was made"
    assert same_files(copied, both[0])
    assert start(copied, BOTH, "self_training.rounds=3") == 0
    assert len(read_results(copied / "selectors/avc")["rounds"]) == 3


def test_more_rounds_for_every_selector(start, copied, tmp_path):
    assert start(copied, BOTH, "self_training.rounds=3") == 0
    for name in ("softmax", "avc"):
        assert start(tmp_path / name, f"self_training.selector={name}", "self_training.rounds=3") == 0
    assert same_branches(copied, tmp_path)
    results = read_results(copied)
    assert len(results["rounds"]) == 3
    assert results["final"] == read_results(tmp_path / results["selectors"]["kept"])["final"]


def test_another_list_is_another_run(start, copied, capsys):
    for words in ("[avc,softmax]", "softmax", "[softmax,avc,margin]"):
        assert start(copied, f"self_training.selector={words}") == 2
        assert "self_training.selector: ['softmax', 'avc'] -> " in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes(tiny, tmp_path):
    """The branches of a job of two processes equal the runs of such jobs."""

    def job(folder, selector):
        words = ["adapt", "--cfg", tiny, f"output={tmp_path / folder}", f"self_training.selector={selector}"]
        codes, output = forked_job(2, CHECKOUT / "uda" / "__main__.py", *words)
        assert codes == [0, 0], output

    job("both", "[softmax,avc]")
    for name in ("softmax", "avc"):
        job(name, name)
    assert same_branches(tmp_path / "both", tmp_path)
    kept = read_results(tmp_path / "both")["selectors"]["kept"]
    name = "checkpoints/final.safetensors"
    assert (tmp_path / "both" / name).read_bytes() == (tmp_path / kept / name).read_bytes()


# Settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("[softmax,softmax]", "self_training.selector: softmax is named twice"),
        ("[softmax,avx]", "self_training.selector: unknown selector 'avx'"),
        ("[]", "self_training.selector: give a name or a list of names; got []"),
        ("[softmax,avc] self_training.keep=lrent self_training.regularizer=lrent", "regularizer; the list has avc"),
        ("avc self_training.keep=lrent self_training.regularizer=lrent", "and an lrent regularizer\n"),
    ],
)
def test_lists_that_are_refused(start, tmp_path, capsys, words, message):
    assert start(tmp_path / "run", *f"self_training.selector={words}".split()) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_list_of_one_is_that_selector(tiny):
    one, plain = (
        AdaptationConfig.load(tiny, [f"self_training.selector={words}"]) for words in ("[softmax]", "softmax")
    )
    assert one == plain and digest(one) == digest(plain) and one.self_training.selector == "softmax"
    assert not one.branches
    assert digest(AdaptationConfig.load(tiny, [BOTH])) != digest(plain)


def test_only_rounds_repeat(tiny):
    """Methods without rounds do not read the list, and no rounds leave no choice."""
    assert not AdaptationConfig.load(tiny, [BOTH, "method=source_only"]).branches
    assert not AdaptationConfig.load(tiny, [BOTH, "self_training.rounds=0"]).branches
    assert AdaptationConfig.load(tiny, [BOTH]).branches.keys() == {"softmax", "avc"}


# Cost


@pytest.mark.parametrize("words", [[], ["self_training.adapt_batch_norm=true"]])
def test_what_is_counted_is_what_the_branches_train_and_predict(tiny, tmp_path, monkeypatch, words):
    config = AdaptationConfig.load(tiny, [BOTH, *words, f"output={tmp_path / 'run'}"])
    predicted, steps = [], []
    predict_images, adapt, train = Engine.predict_images, Engine.adapt_batch_norm, Session.train
    monkeypatch.setattr(
        Engine, "predict_images", lambda *given, **how: predicted.append(32) or predict_images(*given, **how)
    )
    monkeypatch.setattr(Engine, "adapt_batch_norm", lambda *given: predicted.append(32) or adapt(*given))
    monkeypatch.setattr(Session, "train", lambda *given, **how: steps.append(sum(how["steps"])) or train(*given, **how))
    selector_runs.adaptation_run(config).execute()
    work = work_of(config, 32, 32)
    assert (sum(steps), sum(predicted)) == (work.steps, work.predicted)
    assert work.reports == 4


def test_a_dry_run_counts_all_branches(start, in_folder, capsys):
    assert start("run", BOTH, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "rounds   2, for each of the selectors softmax, avc, regularizer none" in out
    assert "cost     16 training steps, 256 images predicted" in out
    assert not list(in_folder.iterdir())
