"""Spaces: what their files say, and their mistakes, which are all named before any run."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uda.adaptation.config import AdaptationConfig
from uda.cli.lists import space_names
from uda.core.errors import UserError
from uda.generalization.config import GeneralizationConfig
from uda.searches.space import Range, Searched, read_space, value_text


@pytest.fixture(scope="module")
def config():
    return AdaptationConfig.load("digits_avh")


def space_of(tmp_path, text, config, given=()):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_space(path, config, given)


def problems_of(tmp_path, text, config):
    with pytest.raises(UserError) as error:
        space_of(tmp_path, text, config)
    return str(error.value).split("\n")


def test_a_file_is_read_by_the_types_of_the_settings(tmp_path, config):
    """`1e-4` is a text for YAML, `rounds` has whole numbers, and a null is a value."""
    (rates,) = space_of(tmp_path, "source.optim.lr: [1e-3, 0.05]", config)[0].settings
    assert rates.choices == (0.001, 0.05) and rates.drawn(0.05) == 1
    text = (
        "source.optim.lr: {low: 1e-4, high: 1e-1, log: true}\n"
        "self_training.rounds: {low: 2, high: 8, step: 2}\n"
        "self_training.optim.clip_grad: [null, 1.0]\n"
        "self_training.selector: [softmax, avc]\n"
    )
    space, left_out = space_of(tmp_path, text, config)
    lr, rounds, clip, selector = space.settings
    assert lr.range == Range(low=1e-4, high=0.1, log=True) and not lr.whole
    assert rounds.whole and rounds.ends == [2, 8] and rounds.describe() == "2 to 8 (step 2)"
    assert clip.choices == (None, 1.0) and clip.describe() == "null, 1"
    assert selector.ends == ("softmax", "avc") and left_out == []
    assert lr.describe() == "0.0001 to 0.1 (log)"
    assert space.values_of(config) == {
        "source.optim.lr": 0.05,
        "self_training.rounds": 10,
        "self_training.optim.clip_grad": None,
        "self_training.selector": "avc",
    }
    again, _ = read_space(space.entries(), config)
    assert again.settings == space.settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source.optim.lrr: [0.1, 0.2]", "mine.yaml: source.optim.lrr: unknown key, did you mean 'lr'?"),
        ("sorce.optim.lr: [0.1, 0.2]", "mine.yaml: sorce: unknown key, did you mean 'source'?"),
        ("self_training.selector: [softmax, acv]", "unknown selector 'acv', did you mean 'avc'?"),
        ("source.optim.lr: {low: 0, high: 1}", "mine.yaml: source.optim.lr: input should be greater than 0; got 0.0"),
        ("source.label_smoothing: [0, 1.5]", "source.label_smoothing: input should be less than 1; got 1.5"),
        ("self_training.rounds: {low: 2, high: 4.5}", "self_training.rounds: this setting has whole numbers"),
        ("source.optim.lr: {low: 0.2, high: 0.1}", "source.optim.lr: low must be below high; got 0.2 and 0.1"),
        ("source.optim.lr: {low: 0.1, hihg: 0.2}", "source.optim.lr.hihg: unknown key, did you mean 'high'?"),
        ("source.optim.lr: {low: -1, high: 2, log: true}", "log: low must be above 0; got -1"),
        ("source.optim.lr: {low: 0.1, high: 0.55, step: 0.1}", "step: high must be low plus some steps; got 0.1, 0.55"),
        ("self_training.selector: [avc, [softmax, avc]]", "mine.yaml: self_training.selector: a trial has one"),
        ("source.optim.lr: 0.1", "source.optim.lr: give a list of values, [a, b], or a range"),
        ("source.optim.lr: [0.1]", "needs at least two values"),
        ("source.optim.lr: [0.1, 0.1]", "source.optim.lr: 0.1 is given twice"),
        ("source: {optim.lr: [0.1, 0.2]}", "source: write settings below it with their whole name, such as source.o"),
        ("seed: [0, 1]", "seed: no setting for a search: a seed is luck"),
        ("validator: [im, bnm]", "validator: no setting for a search: one validator judges all trials"),
        ("runtime.threads: [1, 2]", "runtime.threads: no setting for a search: it does not change what a run is"),
        ("output: [a, b]", "output: no setting for a search"),
        ("data.target_labels: [auto, none]", "data.target_labels: no setting for a search: the target and its labels"),
        ("data.target_labelled: [a.txt, b.txt]", "the target and its labels are given"),
        ("data.target: [mnist, rendered]", "the target and its labels are given"),
        ("data.source: [mnist, rendered]", "data.source: no setting for a search: all trials need the same data"),
        ("model.classifier: [a.npy, b.npy]", "model.classifier: no setting for a search: class vectors are given like"),
        ("source.optim.lr: {min: 0.1, max: 0.2}", "source.optim.lr: a range is {low: ..., high: ...}, not min and max"),
        ("adaptation.steps: [10, 20]", "method 'self_training' does not read adaptation.steps; leave it out"),
        ("{}", "mine.yaml: a space needs settings, such as source.optim.lr:"),
        ("- a", "a space is a mapping of keys to values, but this is a list"),
    ],
)
def test_a_mistake_is_named_with_its_cure(text, said, tmp_path, config):
    assert any(said in line for line in problems_of(tmp_path, text, config)), problems_of(tmp_path, text, config)


def test_a_config_with_several_selectors_is_refused(tmp_path):
    several = AdaptationConfig.load("digits_avh", ["self_training.selector=[softmax,avc]"])
    said = problems_of(tmp_path, "source.optim.lr: [0.1, 0.2]", several)
    assert said == [
        "self_training.selector: a trial has one selector, not a list (softmax, avc); give one, and name the others in "
        "the space"
    ]


def test_all_mistakes_are_told_at_once(tmp_path, config):
    text = "seed: [0, 1]\nsource.optim.lr: [0.1]\nself_training.batch: [1, 2]\nself_training.batch.mixed: [32, 64]\n"
    said = problems_of(tmp_path, text, config)
    assert len(said) == 3 and "self_training.batch.mixed: overlaps with self_training.batch" in said[2]


def test_values_that_only_fit_together_are_taken(tmp_path, config):
    """Each value is tried with the first ones of the others: `lrent` needs softmax, which the config does not have."""
    text = "self_training.selector: [softmax, margin]\nself_training.regularizer: [lrent, mrkld]\n"
    space, _ = space_of(tmp_path, text, config)
    assert len(space.settings) == 2
    batches = "self_training.batch: [{mixed: 32}, {source: 16, selected: 24}]\n"
    space, _ = space_of(tmp_path, batches, config)
    assert space.settings[0].describe() == "{mixed: 32}, {source: 16, selected: 24}"


def test_a_given_setting_is_left_out(tmp_path, config):
    text = "source.optim.lr: [0.1, 0.2]\nself_training.rounds: [2, 3]\n"
    space, left_out = space_of(tmp_path, text, config, ["self_training.rounds"])
    assert [setting.key for setting in space.settings] == ["source.optim.lr"] and left_out == ["self_training.rounds"]
    with pytest.raises(UserError, match="nothing is left to search"):
        space_of(tmp_path, text, config, ["self_training.rounds", "source"])


@pytest.mark.parametrize("name", space_names())
def test_the_spaces_that_are_there_fit_the_configs_of_their_data(name):
    space, _ = read_space(name, AdaptationConfig.load(f"{name.partition('_')[0]}_avh"))
    assert len(space.settings) >= 6


def test_a_space_of_domain_generalisation_has_the_options_of_its_loss():
    config = GeneralizationConfig.load("rotated_digits_avh_loss")
    space, _ = read_space({"model.loss_options.scale": {"low": 2, "high": 30}, "training.steps": [10, 20]}, config)
    assert not space.settings[0].whole and space.values_of(config)["model.loss_options.scale"] is not None
    with pytest.raises(UserError, match="scael: unknown key, did you mean 'scale'"):
        read_space({"model.loss_options.scael": [1, 2]}, config)
    with pytest.raises(UserError, match="target: no setting for a search: the unseen domain is given"):
        read_space({"target": ["m0", "m15"]}, config)


RANGES = st.builds(
    lambda low, width, log: Range(low=low, high=low + width, log=log),
    st.floats(1e-5, 1e3), st.floats(1e-3, 1e3), st.booleans(),
)  # fmt: skip


@settings(deadline=None)  # the first example imports Optuna
@given(RANGES, st.floats(0, 1))
def test_a_drawn_number_has_few_digits_and_stays_in_its_range(numbers, place):
    setting = Searched("a", range=numbers)
    drawn = numbers.low + place * (numbers.high - numbers.low)
    value = setting.value(min(drawn, numbers.high))
    assert numbers.low <= value <= numbers.high
    assert math.isclose(value, drawn, rel_tol=1e-3)
    assert value in (numbers.low, numbers.high) or value == float(f"{value:.4g}")
    assert setting.drawn(value) == value and setting.distribution()._contains(value)


def test_values_that_a_space_lacks_have_no_draw():
    lr, steps = Searched("lr", range=Range(low=0.1, high=1)), Searched("n", range=Range(low=0, high=1, step=0.25))
    assert [lr.drawn(value) for value in (0.05, 0.5, None, "a", True)] == [None, 0.5, None, None, None]
    assert [steps.drawn(value) for value in (0.5, 0.6)] == [0.5, None]
    choice = Searched("c", choices=({"mixed": 8}, None))
    assert [choice.drawn(value) for value in ({"mixed": 8}, None, 3)] == [0, 1, None]
    assert choice.value(1) is None


def test_values_are_written_as_in_yaml():
    assert value_text([True, None, 0.25, "a", {"b": 1e-5}]) == "[true, null, 0.25, a, {b: 1e-05}]"
