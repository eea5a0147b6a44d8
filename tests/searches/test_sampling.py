"""Optuna's part of a search, and what validators would have chosen."""

import math

import numpy as np
import pytest

from uda.searches import sampling
from uda.searches.results import oracle_of, short_keys, verdicts
from uda.searches.runs import KINDS
from uda.searches.sampling import BEFORE_PRUNING, RANDOM_TRIALS, is_hopeless, propose
from uda.searches.space import Range, Searched, Space
from uda.searches.trials import Trial, best_of

SPACE = Space(
    "mine",
    (
        Searched("lr", range=Range(low=1e-5, high=1.0, log=True)),
        Searched("selector", choices=("softmax", {"a": 1}, None)),
        Searched("rounds", range=Range(low=2, high=8), whole=True),
    ),
)


def score_of(values):
    """Best at lr 0.01 with the second choice."""
    return -((math.log10(values["lr"]) + 2) ** 2) - (values["selector"] != {"a": 1})


def searched(count, seed=0):
    trials = []
    while len(trials) < count:
        values = propose(SPACE, trials, seed)
        trials.append(Trial(len(trials), values, "finished", [score_of(values)]))
    return trials


def test_proposals_depend_on_seed_and_trials_alone():
    """As those of a search that was killed and goes on."""
    trials = searched(9)
    assert propose(SPACE, trials[:8], 0) == trials[8].values
    assert propose(SPACE, trials[:8], 1) != trials[8].values
    assert len({trial.values["lr"] for trial in trials}) == 9


def test_values_are_of_the_space():
    for trial in searched(8):
        assert 1e-5 <= trial.values["lr"] <= 1 and trial.values["rounds"] in range(2, 9)
        assert trial.values["selector"] in ("softmax", {"a": 1}, None) and type(trial.values["rounds"]) is int


def test_later_proposals_are_better_than_random_ones():
    """On average over searches: -2.8 and -1.5 over many more of them."""
    searches = [[trial.score for trial in searched(20, seed)] for seed in range(6)]
    early = np.mean([scores[:RANDOM_TRIALS] for scores in searches])
    assert np.mean([scores[-8:] for scores in searches]) > early + 0.5


def test_a_trial_whose_values_the_space_lacks_teaches_nothing():
    outside = Trial(0, {"lr": 1e-9, "selector": "softmax", "rounds": 4}, "finished", [5.0])
    failed = Trial(1, {"lr": 0.1, "selector": None, "rounds": 4}, "failed", error="diverged")
    others = searched(8)
    later = [Trial(number + 2, trial.values, "finished", trial.scores) for number, trial in enumerate(others)]
    assert propose(SPACE, [outside, failed, *later], 0)["lr"] >= 1e-5
    assert best_of([outside, failed, *later]) is outside, "it counts nevertheless"


def pruned(scores, others, states=None):
    values = {"lr": 0.1, "selector": None, "rounds": 4}
    states = states or ["finished"] * len(others)
    trials = [Trial(number, values, state, own) for number, (own, state) in enumerate(zip(others, states, strict=True))]
    running = Trial(len(trials), values, "running", scores)
    return is_hopeless(SPACE, [*trials, running], running)


def test_a_trial_below_the_median_of_others_is_hopeless():
    """Reports 0, 1, 2 of five trials. At report 1 their scores are 1 to 5, the median is 3. The best so far counts."""
    others = [[0.0, float(score), 9.0] for score in range(1, 6)]
    assert BEFORE_PRUNING == 5
    assert pruned([0.0, 2.9], others) and not pruned([0.0, 3.1], others)
    assert not pruned([3.5, 1.0], others), "it was better before"
    assert not pruned([-9.0], others), "not by the source model"
    assert not pruned([0.0, 2.9], others[:4]), "too few others"
    assert not pruned([0.0, 2.9], others, ["pruned"] * 5), "others that ended early do not count"
    assert not pruned([0.0, None], others)


def test_optuna_s_own_setting_stays():
    import optuna

    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.DEBUG)
        propose(SPACE, [], 0)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)


def test_without_optuna_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(sampling.UserError, match=r'needs the package optuna: pip install "uda-toolkit\[search\]"'):
        sampling.check_installed()


def test_what_each_validator_would_have_chosen():
    """Trial 0 has 50 %, the best by labels 90 %. `im` takes 80 %: three quarters of the gain. `snd` takes 40 %."""
    scores = {"im": [0.1, 0.3, 0.9, 0.8, 0.0], "snd": [0.2, 0.1, 0.3, 0.4, 0.9], "agreement": [None, 1, 1, 1, 1]}
    oracle = dict(enumerate([0.5, 0.6, 0.8, 0.9, 0.4])) | {5: 0.99, 6: None}
    trials = [
        Trial(number, {}, "finished", [0.0], {name: own[number] for name, own in scores.items()}) for number in range(5)
    ]
    trials += [Trial(5, {}, "pruned", [0.0], {"im": 9.0, "snd": 9.0}), Trial(6, {}, "failed")]
    im, snd = verdicts(trials, oracle)
    assert (im.validator, im.trial, im.accuracy) == ("im", 2, 0.8) and im.share == pytest.approx(0.75)
    assert (snd.validator, snd.trial) == ("snd", 4) and snd.share == pytest.approx(-0.25)
    assert im.rank == pytest.approx(0.9) and snd.rank == pytest.approx(-0.1)
    assert verdicts(trials, dict.fromkeys(range(7))) == []
    assert verdicts(trials[:1], oracle)[0].share is None and verdicts(trials[:1], oracle)[0].rank is None


def test_an_oracle_figure_is_not_known_where_the_folder_is_gone(tmp_path):
    assert oracle_of(tmp_path / "000", KINDS[0]) is None
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / "source.json").write_text("broken")
    assert oracle_of(tmp_path, KINDS[0]) is None


def test_short_names_stay_different():
    keys = ["source.optim.lr", "self_training.optim.lr", "self_training.portion.start", "method"]
    assert list(short_keys(keys).values()) == ["source.optim.lr", "self_training.optim.lr", "portion.start", "method"]
