"""Configs: bases, overrides, and every mistake at once with file, key and cure."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from uda.adaptation.config import AdaptationConfig
from uda.core.resources import CHECKOUT
from uda.core.yaml_files import ConfigError, find_config
from uda.generalization.config import GeneralizationConfig
from uda.hardness.dynamics.config import SupervisedConfig
from uda.hardness.study.study import load_study
from uda.tables.recipe import digest
from uda.training.config import differing_keys

CONFIGS = sorted(path.name for path in (CHECKOUT / "configs").glob("*.yaml"))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_loads_as_one_kind_of_run(name):
    """The other kinds say which command it is for."""
    loaded, refused = [], set()
    for read in (
        *(kind.load for kind in (AdaptationConfig, GeneralizationConfig, SupervisedConfig)),
        load_study,
    ):
        try:
            loaded.append(read(name).name)
        except ConfigError as error:
            refused.add(str(error))
    assert loaded == [Path(name).stem] and len(refused) == 1, "all name the same command"
    assert re.search(r"this config is for `uda \w+( \w+)?`; run it with that command", *refused)


@pytest.mark.parametrize("dataset", ["visda", "digits", "pacs"])
def test_self_training_configs_differ_in_selector_and_regularizer_alone(dataset):
    base = AdaptationConfig.load(f"{dataset}_cbst").model_dump(mode="json")
    for method in ("avh", "crst"):
        keys = {line.split(":")[0] for line in differing_keys(AdaptationConfig.load(f"{dataset}_{method}"), base)}
        assert keys and keys <= {"self_training.selector", "self_training.regularizer"}


def test_bare_name_is_found_with_and_without_ending():
    assert find_config("visda_avh") == find_config("visda_avh.yaml") == CHECKOUT / "configs" / "visda_avh.yaml"


def test_a_name_that_no_config_is_like_lists_all():
    """The ending is no likeness."""
    with pytest.raises(ConfigError, match=r"nospace: no such space: .* own spaces \(known: digits\.yaml, pacs_bank"):
        find_config("nospace", CHECKOUT / "configs" / "spaces", "space")


def test_another_loss_leaves_the_options_of_the_first_behind(tmp_path):
    """A loss without options names those that are given."""
    path = write(tmp_path, "mine.yaml", "_base_: digits_avh.yaml\nmodel: {loss: avh, loss_options: {scale: 4}}\n")
    assert AdaptationConfig.load(path, ["model.loss=avh"]).model.loss_options == {"scale": 4}
    assert AdaptationConfig.load(path, ["model.loss=cross_entropy"]).model.loss_options == {}
    with pytest.raises(ConfigError) as error:
        AdaptationConfig.load(path, ["model.loss=cross_entropy", "model.loss_options.scale=3"])
    said = "command line: model.loss_options: this model.loss has no options, but scale is given; remove model.loss_opt"
    assert str(error.value).startswith(said)


def test_another_method_leaves_the_options_of_the_first_behind(tmp_path):
    path = write(tmp_path, "mine.yaml", "_base_: digits_fixmatch.yaml\nmethod_options: {threshold: 0.7}\n")
    assert AdaptationConfig.load(path, ["method=fixmatch"]).method_options["threshold"] == 0.7
    assert AdaptationConfig.load(path, ["method=mcc"]).method_options == {}


def test_unknown_config_names_the_nearest():
    with pytest.raises(ConfigError, match=r"visda_avg\.yaml: no such config.*did you mean 'visda_avh\.yaml'"):
        find_config("visda_avg.yaml")


def test_base_is_overlaid_and_overrides_win(tmp_path):
    write(tmp_path, "base.yaml", "data: {source: a, target: b}\nself_training: {rounds: 3, selector: avc}\n")
    path = write(tmp_path, "mine.yaml", "_base_: base.yaml\nself_training: {rounds: 5}\n")
    config = AdaptationConfig.load(path, ["seed=7", "self_training.portion.start=0.3", "source.optim.lr=1e-3"])
    assert (config.self_training.rounds, config.self_training.selector) == (5, "avc")
    assert (config.seed, config.self_training.portion.start, config.source.optim.lr) == (7, 0.3, 1e-3)
    assert config.self_training.portion.max == 0.5, "an override of one key keeps the others"


def test_batch_of_one_kind_replaces_the_other(tmp_path):
    config = AdaptationConfig.load("digits_avh", ["self_training.batch.mixed=64"])
    assert (config.self_training.batch.mixed, config.self_training.batch.source) == (64, None)
    batch = AdaptationConfig.load("digits_avh", ["self_training.batch.selected=16"]).self_training.batch
    assert (batch.source, batch.selected) == (32, 16), "one of a pair keeps the other"


def test_base_is_also_looked_for_in_configs(tmp_path):
    path = write(tmp_path, "mine.yaml", "_base_: visda_avh.yaml\ndata: {dataset: null, source: a, target: b}\n")
    assert AdaptationConfig.load(path).self_training.rounds == 20


def test_every_mistake_at_once_with_file_key_and_cure(tmp_path):
    write(tmp_path, "base.yaml", "data: {source: a, target: b}\nself_training: {rouns: 3}\n")
    path = write(
        tmp_path,
        "mine.yaml",
        "_base_: base.yaml\nself_training: {selecter: avc, regularizer: mrkl}\nmodel: {head: wide}\n",
    )
    with pytest.raises(ConfigError) as caught:
        AdaptationConfig.load(path, ["seed=-1", "self_training.selector=sofmax", "nonsense", "source=3"])
    lines = str(caught.value).split("\n")
    assert "mine.yaml: self_training.selecter: unknown key, did you mean 'selector'?" in lines
    assert "base.yaml: self_training.rouns: unknown key, did you mean 'rounds'?" in lines
    for start in (
        "command line: seed: ",
        "command line: 'nonsense': overrides are written key=value",
        "command line: self_training.selector: unknown selector 'sofmax', did you mean 'softmax'?",
        "mine.yaml: self_training.regularizer: unknown regularizer 'mrkl', did you mean 'mrkld'?",
        "mine.yaml: model.head: ",
        "command line: source: must be a section of keys, not a value; got 3",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "self_training.selector=softmax,avc",
            r"selector: a list of names is written \[softmax,avc\], in quotes; got ",
        ),
        ("self_training.selector=softmax,acv", "unknown selector 'softmax,acv'"),
        ("source.optim.learning_rate=0.1", r"source\.optim\.learning_rate: unknown key, did you mean 'lr'\?"),
    ],
)
def test_a_mistake_of_habit_is_named_with_its_cure(word, message):
    with pytest.raises(ConfigError, match=f"^command line: .*{message}"):
        AdaptationConfig.load("digits_avh", [word])


def test_overrides_by_a_mapping_are_those_by_words():
    """Values are Python's own; a text stays one, whatever YAML would make of it. A path is a text."""
    mapping = {
        "self_training.rounds": 3,
        "self_training": {"portion": {"start": 0.5}, "selector": "softmax"},
        "data.source": ["2017", "on"],
        "data.dataset": None,
        "data.root": Path("here"),
        "transforms.source.scale": (0.5, 1.5),
        "seed": 1,
    }
    words = [
        *("self_training.rounds=3", "self_training.portion.start=0.5", "self_training.selector=softmax", "seed=1"),
        *("data.source=[2017,on]", "data.dataset=null", "data.root=here", "transforms.source.scale=[0.5,1.5]"),
    ]
    assert AdaptationConfig.load("digits_avh", mapping) == AdaptationConfig.load("digits_avh", words)


def test_overrides_by_a_mapping_say_where_they_come_from():
    with pytest.raises(ConfigError) as caught:
        AdaptationConfig.load("digits_avh", {"self_training.round": 3, "seed": "x"}, origin="overrides")
    first, second = sorted(str(caught.value).split("\n"))
    assert first.startswith("overrides: seed: ")
    assert second == "overrides: self_training.round: unknown key, did you mean 'rounds'?"


def test_a_config_is_changed_by_overrides_as_its_file_is():
    """A setting that the file leaves open stays open: of a batch, for one, either `mixed` or the shares are given."""
    config = AdaptationConfig.load("digits_avh")
    for changes in ({}, {"self_training.batch.source": 8}, {"self_training.batch.mixed": 16}, {"seed": 4}):
        assert AdaptationConfig.load(config, changes) == AdaptationConfig.load("digits_avh", changes)
    assert config == AdaptationConfig.load("digits_avh")


def test_what_is_meant_is_looked_for_nearby_first():
    """`step` is a setting of two other sections, `steps` one of this section; words in two are one mistake."""
    with pytest.raises(ConfigError) as caught:
        AdaptationConfig.load(
            "digits_mmd", ["adaptation.step=20", "adaptation.lr=1", "adaptation.steps", "20", "data.target=mnits"]
        )
    lines = set(str(caught.value).split("\n"))
    assert "command line: adaptation.step: unknown key, did you mean 'steps'?" in lines
    assert any(
        line.startswith("command line: adaptation.lr: unknown key, did you mean 'source.optim.lr'") for line in lines
    )
    assert (
        "command line: 'adaptation.steps 20': overrides are written key=value, did you mean adaptation.steps=20?"
        in lines
    )
    assert any("data.target: digits: unknown domain 'mnits', did you mean 'mnist'?" in line for line in lines)
    assert len(lines) == 4


def test_a_method_alone_is_no_config_but_names_those_of_it():
    with pytest.raises(ConfigError, match=r"'digits_mcd\.yaml', 'pacs_mcd\.yaml' or 'visda_mcd\.yaml'\?"):
        AdaptationConfig.load("mcd")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {source: a, target: b}\nseed: 1\nseed: 2\n", "key 'seed' is given twice"),
        ("data: [unclosed", "not valid YAML"),
        ("- a\n- b\n", "a config is a mapping"),
        ("_base_: nowhere.yaml\n", "_base_: no such file: nowhere.yaml"),
        ("_base_: 5\n", "_base_: no such file: 5"),
        ("_base_: {a: b}\n", "_base_: must be a path or a list of paths; got {'a': 'b'}"),
        ("? [a, b]\n: 1\n", "not valid YAML"),
        ("plugins: mine.py\ndata: {source: a, target: b}\n", "plugins: input should be a valid list"),
        ("data: {source: a, target: b}\nsource: {optim: {lr: .inf}}\n", "lr: input should be a finite number"),
        ("_base_: mine.yaml\n", "_base_ forms a circle"),
        ("data: {source: a}\n", "data.target: missing"),
        ("data: {source: a, target: b}\nself_training: {batch: {source: 8}}\n", "give either 'mixed' or both"),
        ("data: {source: a, target: b}\nself_training: {keep: lrent}\n", "'lrent' needs the softmax selector"),
    ],
)
def test_bad_files_are_explained(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        AdaptationConfig.load(write(tmp_path, "mine.yaml", text))


def test_plugin_registers_a_selector_beside_its_config(tmp_path):
    write(
        tmp_path,
        "norms.py",
        "from uda.selection.selectors import SELECTORS\n"
        "@SELECTORS.register('test_config_norm')\n"
        "def norm(features, logits, weight):\n"
        "    'Softmax times the norm.'\n"
        "    return logits.softmax(1) * features.norm(dim=1, keepdim=True)\n",
    )
    text = "plugins: [norms.py]\ndata: {source: a, target: b}\nself_training: {selector: test_config_norm}\n"
    path = write(tmp_path, "mine.yaml", text)
    assert AdaptationConfig.load(path).self_training.selector == "test_config_norm"
    assert AdaptationConfig.load(path).plugins == [str(tmp_path / "norms.py")], "loading twice is no clash"


def test_a_method_s_setting_written_out_at_its_default_is_no_difference():
    """In a folder whose run is resumed, as in a table's recipe; what holds for another value is said."""
    before, written = (
        AdaptationConfig.load("pacs_mmd"),
        AdaptationConfig.load("pacs_mmd", ["method_options={exponents: [-3, -2, -1, 0, 1]}"]),
    )
    assert written.method_options and digest(written) == digest(before)
    assert differing_keys(written, before.model_dump(mode="json")) == []
    assert differing_keys(before, written.model_dump(mode="json")) == []
    other = AdaptationConfig.load("pacs_mmd", ["method_options={exponents: [0]}"])
    assert differing_keys(other, before.model_dump(mode="json")) == [
        "method_options.exponents: [-3, -2, -1, 0, 1] -> [0]"
    ]


def test_a_plugin_that_was_edited_makes_another_run(tmp_path, monkeypatch):
    """Of the same name and settings: its code is what decides. Elsewhere it is the same run."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "empty.py", "WEIGHT = 0.1\n")
        text = "plugins: [empty.py]\noutput: run\ndata: {source: a, target: b}\nplugin_code: {empty.py: '0'}\n"
        write(tmp_path / folder, "mine.yaml", text)
    first, moved = (AdaptationConfig.load(tmp_path / folder / "mine.yaml") for folder in ("here", "there"))
    saved = yaml.safe_load(first.to_yaml())
    assert differing_keys(moved, saved) == [] and digest(moved) == digest(first)
    write(tmp_path / "here", "empty.py", "WEIGHT = 5\n")
    with pytest.raises(ConfigError, match=r"empty\.py has changed since this process imported it"):
        AdaptationConfig.load(tmp_path / "here" / "mine.yaml")
    for name in [name for name in sys.modules if name.startswith("uda_plugin_empty")]:
        monkeypatch.delitem(sys.modules, name)  # as in another process
    edited = AdaptationConfig.load(tmp_path / "here" / "mine.yaml")
    (difference,) = differing_keys(edited, saved)
    assert difference.startswith("plugin_code.empty.py: '") and digest(edited) != digest(first)


def test_a_run_on_another_bank_is_another_run_and_on_the_same_bank_elsewhere_the_same(tmp_path):
    """The recipe has what the bank is, and not its place. A saved run can be read without its bank."""
    mine = write(tmp_path, "mine.yaml", "output: run\ndata: {source: a, target: b}\n")
    for folder, value in (("here", 0), ("there/copy", 0), ("other", 1)):
        (tmp_path / folder).mkdir(parents=True)
        for domain in ("a", "b", "unread"):
            features = np.full((2, 3), value if domain == "b" else 0, np.float32)
            features[0] += domain == "unread" and folder != "here"
            np.savez(tmp_path / folder / f"{domain}.npz", features=features, ids=["x", "y"])
    first, moved, other = (
        AdaptationConfig.load(mine, [f"data.features={tmp_path / folder}"])
        for folder in ("here", "there/copy", "other")
    )
    saved = yaml.safe_load(first.to_yaml())
    assert differing_keys(moved, saved) == [] and digest(moved) == digest(first)
    (difference,) = differing_keys(other, saved)
    assert difference == f"bank: '{first.bank}' -> '{other.bank}'" and digest(other) != digest(first)
    images = AdaptationConfig.load(mine, ["bank=mine"])
    assert images.bank == "" and digest(images) != digest(first)
    kept = write(tmp_path, "config.yaml", first.to_yaml())
    shutil.rmtree(tmp_path / "here")
    assert AdaptationConfig.load(kept, saved=True).bank == first.bank
    with pytest.raises(
        ConfigError, match=r"command line: data\.features: no such folder: .*here; make it with `uda bank"
    ):
        AdaptationConfig.load(mine, [f"data.features={tmp_path / 'here'}"])


@pytest.mark.parametrize(
    ("name", "text", "message"), [("gone.py", None, "no such file"), ("bad.py", "1 +", "SyntaxError")]
)
def test_bad_plugins_are_named(tmp_path, name, text, message):
    if text:
        write(tmp_path, name, text)
    with pytest.raises(ConfigError, match=f"{message}"):
        AdaptationConfig.load(write(tmp_path, "mine.yaml", f"plugins: [{name}]\ndata: {{source: a, target: b}}\n"))


def test_resolved_config_reads_back_the_same(tmp_path):
    config = AdaptationConfig.load("pacs_crst", ["seed=3"])
    assert AdaptationConfig.load(write(tmp_path, "again.yaml", config.to_yaml())) == config


def test_differing_keys_leave_out_how_and_where(tmp_path):
    saved = yaml.safe_load(AdaptationConfig.load("digits_avh").to_yaml())
    same = AdaptationConfig.load("digits_avh", ["runtime.precision=bf16", "output=elsewhere", "report.gallery=3"])
    other = AdaptationConfig.load("digits_avh", ["self_training.selector=softmax", "seed=1"])
    assert differing_keys(same, saved) == []
    assert differing_keys(other, saved) == ["seed: 0 -> 1", "self_training.selector: 'avc' -> 'softmax'"]


def test_folder_template():
    config = AdaptationConfig.load("pacs_avh", ["data.target=sketch", "seed=2"])
    assert config.folder == Path("runs/pacs_avh/photo_to_sketch/seed2")
    assert AdaptationConfig.load("digits_avh").folder == Path("runs/digits_avh/seed0")
