"""A search from its start to its page: small real runs."""

import json
import shutil

import pytest
import yaml

from uda.adaptation.config import AdaptationConfig
from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.generalization.config import GeneralizationConfig
from uda.searches import search as module
from uda.searches.search import Search
from uda.searches.trials import best_of, read_trials, trial_folder, write_trial
from uda.training.config import differing_keys

SPACE = {
    "source.optim.lr": {"low": 0.01, "high": 0.2, "log": True},
    "self_training.selector": ["softmax", "avc"],
}
QUICK = ["self_training.steps=1", "self_training.rounds=2"]


def search(tiny, folder, trials=3, space=SPACE, overrides=(), **options):
    said = []
    options = {"log": said.append, "pruning": False} | options
    own = Search(tiny, space, trials, folder=folder, overrides=[*QUICK, *overrides], **options)
    return own, said


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """A finished search, its result and what it said."""
    own, said = search(tiny, tmp_path_factory.mktemp("searched") / "one")
    return own, own.run(), said


def scores_of(folder):
    """All that must not depend on how often a search was interrupted."""
    return [(trial.number, trial.values, trial.state, trial.scores, trial.validators) for trial in read_trials(folder)]


def copied(done, tmp_path):
    return shutil.copytree(done[0].folder, tmp_path / "copy")


def test_trials_are_ordinary_runs_and_trial_0_is_the_config_as_it_is(done, tiny):
    own, result, _ = done
    config = AdaptationConfig.load(tiny, QUICK)
    assert [trial.state for trial in result.trials] == ["finished"] * 3
    for trial in result.trials:
        folder = trial_folder(own.folder, trial.number)
        ran = AdaptationConfig.load(folder / "config.yaml", saved=True)
        differences = {line.partition(":")[0] for line in differing_keys(ran, config.model_dump(mode="json"))}
        assert differences <= (set() if trial.number == 0 else SPACE.keys()) and (folder / "results.json").is_file()
        assert trial.values["source.optim.lr"] == ran.source.optim.lr
        report = json.loads((folder / "rounds/01/report.json").read_text())
        assert trial.validators == report["validators"] and trial.score == report["validators"]["im"]
        assert len(trial.scores) == 3, "the source model's, and one for each round"
        assert not (folder / "report.html").exists()


def test_the_result_is_a_config_that_runs_as_the_best_trial_did(done):
    own, result, said = done
    best = best_of(result.trials)
    assert result.score == best.score == max(trial.score for trial in result.trials) and result.values == best.values
    found = AdaptationConfig.load(result.best)
    assert not differing_keys(found, own.config_of(best).model_dump(mode="json"))
    assert found.name == "tiny_best" and found.output is None and found.report.page is False
    content = yaml.safe_load(result.best.read_text())
    assert content["_base_"].endswith("tiny.yaml") and result.best.read_text().startswith("# The best of 3 trials")
    assert max(map(len, said)) <= 200 and any(line.startswith(f"best     trial {best.number}: im") for line in said)


def test_only_the_best_trial_keeps_its_checkpoints(done):
    own, result, _ = done
    folders = {trial.number: trial_folder(own.folder, trial.number) / "checkpoints" for trial in result.trials}
    assert [number for number, folder in folders.items() if any(folder.glob("*.*"))] == [best_of(result.trials).number]


def test_a_finished_search_says_so_and_a_longer_one_goes_on(done, tiny, tmp_path, monkeypatch):
    folder = copied(done, tmp_path)
    before = scores_of(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Search, "_run_trial", None)
        again, said = search(tiny, folder)
        assert again.run().score == done[1].score
        shorter, _ = search(tiny, folder, 2)
        shorter.run()
    assert said[0] == f"{folder} is finished: 3 trials, 3 finished"
    longer, said = search(tiny, folder, 4, keep=True)
    assert len(longer.run().trials) == 4 and scores_of(folder)[:3] == before
    assert "resumes  after 3 trials, 3 finished" in said


def test_target_labels_change_nothing(done, tiny, tmp_path):
    """The same search without labels: the same values, scores and best values, and no oracle figure anywhere."""
    own, result, _ = done
    blind, said = search(tiny, tmp_path / "blind", 3, overrides=["data.target_labels=none"])
    found = blind.run()
    assert scores_of(blind.folder) == scores_of(own.folder)
    assert found.values == result.values and found.score == result.score
    summary = json.loads((blind.folder / "search.json").read_text())
    assert all(trial["oracle"] is None for trial in summary["trials"]) and summary["oracle_choices"] == []
    page = (blind.folder / "search.html").read_text()
    assert 'abbr class="oracle"' not in page and not any("oracle" in line for line in said)


def test_the_summary_and_the_page_mark_what_needs_labels(done):
    own, result, said = done
    summary = json.loads((own.folder / "search.json").read_text())
    assert summary["finished"] and summary["best"]["trial"] == best_of(result.trials).number
    for trial in summary["trials"]:
        report = json.loads((trial_folder(own.folder, trial["number"]) / "rounds/01/report.json").read_text())
        assert trial["oracle"] == report["class_mean"]
    assert {verdict["validator"] for verdict in summary["oracle_choices"]} >= {"im", "snd", "bnm", "entropy"}
    page = (own.folder / "search.html").read_text()
    assert page.count("<svg") == 4, "history, two settings, and score against accuracy"
    assert 'accuracy, % <abbr class="oracle"' in page and "best.yaml" in page
    assert [line for line in said if "class mean" in line] == [line for line in said if line.startswith("oracle ")]
    record = json.loads((own.folder / "trials/001.json").read_text())
    assert not {"oracle", "class_mean", "accuracy"} & record.keys(), "the record has nothing to choose by with labels"


@pytest.mark.parametrize("reports", [0, 2])
def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(reports, done, tiny, tmp_path, monkeypatch):
    folder = tmp_path / "cut"
    read = Search._read

    def cut(self, trial, records):
        read(self, trial, records)
        if trial.number == 1 and len(records) > reports:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_read", cut)
        with pytest.raises(KeyboardInterrupt):
            search(tiny, folder, 2)[0].run()
    assert [trial.state for trial in read_trials(folder)] == ["finished", "running"]
    assert "not finished: 1 of 2 trials have ended" in (folder / "search.html").read_text()
    search(tiny, folder, 2)[0].run()
    assert scores_of(folder) == scores_of(done[0].folder)[:2]
    assert "resuming" in (trial_folder(folder, 1) / "log.txt").read_text()


def test_a_trial_that_was_killed_before_its_run_began_is_run(done, tiny, tmp_path):
    folder = copied(done, tmp_path)
    trial = read_trials(folder)[2]
    trial.state, trial.scores, trial.validators = "running", [], {}
    write_trial(folder, trial)
    shutil.rmtree(trial_folder(folder, 2))
    search(tiny, folder)[0].run()
    assert scores_of(folder) == scores_of(done[0].folder)


def test_a_trial_that_ended_just_before_its_record_is_not_run_again(done, tiny, tmp_path, monkeypatch):
    folder = copied(done, tmp_path)
    trial = read_trials(folder)[2]
    trial.state, trial.scores, trial.validators = "running", [], {}
    write_trial(folder, trial)
    monkeypatch.setattr("uda.training.engine.Engine.fit", None)
    search(tiny, folder)[0].run()
    assert scores_of(folder) == scores_of(done[0].folder)


def test_a_hopeless_trial_ends_early(tiny, tmp_path, monkeypatch):
    asked = []

    def hopeless(space, trials, trial):
        asked.append((trial.number, len(trial.scores)))
        return trial.number == 1 and len(trial.scores) == 2

    monkeypatch.setattr(module, "is_hopeless", hopeless)
    own, said = search(tiny, tmp_path / "pruned", pruning=True)
    result = own.run()
    assert [trial.state for trial in result.trials] == ["finished", "pruned", "finished"]
    assert asked == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)], "after every report but the last"
    assert not (trial_folder(own.folder, 1) / "results.json").exists()
    assert best_of(result.trials).number != 1 and "ended early" in (own.folder / "search.html").read_text()
    assert any("pruned" in line for line in said)


def test_a_failed_trial_is_told_and_the_search_goes_on(tiny, tmp_path, monkeypatch):
    """Trial 1 starts from weights that are not there."""
    monkeypatch.setattr(module, "propose", lambda space, trials, seed: {"source.checkpoint": values[len(trials)]})
    values = {1: "nowhere.safetensors", 2: None}
    own, said = search(tiny, tmp_path / "failed", space={"source.checkpoint": [None, "nowhere.safetensors"]})
    result = own.run()
    assert [trial.state for trial in result.trials] == ["finished", "failed", "finished"]
    assert "nowhere.safetensors" in result.trials[1].error and "nowhere.safetensors" in "\n".join(said)
    assert "Failed: trial 1." in (own.folder / "search.html").read_text()


def test_the_search_ends_where_the_first_trials_all_fail(tiny, tmp_path):
    """A portion that selects nothing."""
    little = ["self_training.portion.start=0.01", "self_training.portion.step=0", "self_training.portion.max=0.01"]
    own, _ = search(tiny, tmp_path / "failed", 9, overrides=little)
    with pytest.raises(UserError, match=r"the first 3 trials have failed: round 0: portion 0\.01 selects no target"):
        own.run()
    assert [trial.state for trial in read_trials(own.folder)] == ["failed"] * 3


def test_a_mistake_of_the_config_itself_ends_the_search(tiny, tmp_path):
    own, _ = search(tiny, tmp_path / "none", overrides=["data.source=nowhere"])
    with pytest.raises(UserError, match="nowhere"):
        own.run()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": {**SPACE, "self_training.selector": ["softmax", "margin"]}}, "space, self_training.selector: "),
        ({"space": {"source.optim.lr": SPACE["source.optim.lr"]}}, "space, self_training.selector: .* -> none"),
        ({"overrides": ["self_training.optim.lr=0.3"]}, "self_training.optim.lr: 0.05 -> 0.3"),
        ({"overrides": ["seed=1"]}, "seed: 0 -> 1"),
        ({"validator": "bnm"}, "validator: im -> bnm"),
        ({"pruning": True}, "pruning: False -> True"),
    ],
)
def test_another_search_in_the_folder_is_refused(change, said, done, tiny):
    with pytest.raises(UserError, match=f"holds another search. It differs in .there -> here. {said}"):
        search(tiny, done[0].folder, **change)


def test_folders_that_are_no_search_s(tiny, tmp_path, done):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        search(tiny, tmp_path / "file")
    with pytest.raises(UserError, match="is neither empty nor a search's"):
        search(tiny, tmp_path)
    with pytest.raises(UserError, match=r"output: a search has a folder of its own"):
        search(tiny, None, overrides=["output=there"])
    folder = copied(done, tmp_path)
    (folder / "trials" / "001.json").write_text('{"number": 5}')
    with pytest.raises(UserError, match=r"001\.json is broken"):
        search(tiny, folder)
    (folder / "search.yaml").write_text("{")
    with pytest.raises(UserError, match=r"search\.yaml cannot be read"):
        search(tiny, folder)


def test_two_processes_do_not_work_in_one_folder(done, tiny, tmp_path, held):
    folder = copied(done, tmp_path)
    own, _ = search(tiny, folder, 4)
    with held(folder), pytest.raises(UserError, match="another process works in"):
        own.run()
    assert len(read_trials(folder)) == 3


def test_mistakes_in_what_is_asked_for(tiny, tmp_path):
    with pytest.raises(UserError, match="start it without torchrun"):
        search(tiny, tmp_path / "a", ranks=Ranks(0, 2))
    with pytest.raises(UserError, match="must be at least 1; got 0"):
        search(tiny, tmp_path / "a", trials=0)
    with pytest.raises(UserError, match="unknown validator 'imm', did you mean 'im'"):
        search(tiny, tmp_path / "a", validator="imm")
    with pytest.raises(UserError, match="this config is for `uda hardness dynamics`"):
        Search("cifar10_resnet", SPACE, 3)


def test_a_mistake_in_a_config_of_domain_generalisation_is_its_only_error(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("_base_: rotated_digits_erm.yaml\ntarget: m30\ntraining: {stesp: 10}\n")
    with pytest.raises(UserError) as error:
        Search(path, {"training.optim.lr": [0.01, 0.1]}, 3)
    assert str(error.value) == "mine.yaml: training.stesp: unknown key, did you mean 'steps'?"


def test_the_folder_is_beside_the_config_s_own_run(tiny):
    own, _ = search(tiny, None, overrides=["seed=3"])
    assert own.folder.as_posix() == "runs/tiny/search_seed3"


def test_a_config_object_gives_a_whole_config(tiny, tmp_path, done):
    own, _ = search(AdaptationConfig.load(tiny, QUICK), tmp_path / "a")
    content = own.best_content(best_of(done[1].trials))
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(content))
    found = AdaptationConfig.load(path)
    assert not differing_keys(found, own.config_of(best_of(done[1].trials)).model_dump(mode="json"))


def test_images_are_read_once(tiny, tmp_path, monkeypatch):
    from uda.adaptation import run

    loaded, load = [], run.load_domains
    monkeypatch.setattr(run, "load_domains", lambda *given: loaded.append(given) or load(*given))
    search(tiny, tmp_path / "a", 2)[0].run()
    assert len(loaded) == 1


def test_domain_generalisation_is_judged_by_held_out_images(tmp_path_factory):
    from tests.data.trees import make_folders
    from tests.generalization.conftest import TINY

    root = tmp_path_factory.mktemp("three")
    for seed, domain in enumerate(("drawn", "photos", "clay")):
        make_folders(root / domain, ["ant", "bee"], per_class=5, seed=seed)
    tiny = root / "tiny.yaml"
    tiny.write_text(TINY.format(root=root))
    space = {"training.optim.lr": [0.01, 0.05]}
    options = {"overrides": ["training.steps=2", "training.evaluate_every=1"], "log": lambda line: None}
    own = Search(tiny, space, 2, folder=root / "search", **options)
    result = own.run()
    assert own.validator == "held-out" and [trial.state for trial in result.trials] == ["finished"] * 2
    report = json.loads((root / "search/trials/000/rounds/01/report.json").read_text())
    assert result.trials[0].score == report["validation"]
    assert json.loads((root / "search/search.json").read_text())["trials"][0]["oracle"] == report["overall"]
    assert GeneralizationConfig.load(result.best).target == f"{root}/clay"
    with pytest.raises(UserError, match="runs of uda generalize are judged by the accuracy on held-out images"):
        Search(tiny, space, 2, "im", root / "other")
    with pytest.raises(UserError, match="a search needs one unseen domain"):
        Search(tiny, space, 2, folder=root / "other", overrides=["target=null"])
