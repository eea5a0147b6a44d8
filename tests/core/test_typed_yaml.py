"""Texts as they were typed: in YAML files and in `key=value` words, by the declared type of the setting."""

import os
from typing import Any, Literal

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.cli.hardness_options import sections
from uda.core.typed_yaml import load_yaml, read_word, typed
from uda.core.yaml_files import ConfigError
from uda.data.cards import load_card
from uda.data.store import default_folder
from uda.generalization.config import GeneralizationConfig
from uda.hardness.study.study import load_study, trainings
from uda.kinds import register_tables
from uda.tables.definition import load_table

register_tables()

#: Folders that people have, and what YAML 1.1 reads them as: integer, dates (one of them impossible), truths, octal,
#: float, nothing, not a number, base 60, merge and value keys.
NAMES = ["2017", "2024-05-17", "2024-13-45", "on", "NO", "True", "010", "1e3", "1.50", "null", "nan", ".nan", "1_000"]
NAMES += ["0x1F", "12:30", "<<", "=", "0b_", ".inf"]


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("data: {dataset: null, source: a, target: b}\n")
    return path


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_reads_as_something_else_is_the_text_as_typed(name, tmp_path, own):
    """On the command line, in a config, in a list on either, and in the config that a run leaves."""
    config = AdaptationConfig.load(own, [f"data.target={name}", f"output={name}x"])
    assert (config.data.target, config.output) == (name, f"{name}x")
    assert AdaptationConfig.load(write(tmp_path / "again.yaml", config.to_yaml())) == config
    text = f"name: {name}\ndata: {{source: {name}, target: b, root: {name}s}}\nmethod: source_only\n"
    config = AdaptationConfig.load(write(tmp_path / "file.yaml", text))
    assert (config.name, config.data.source, config.data.root) == (name, name, f"{name}s")
    domains = write(tmp_path / "domains.yaml", f"data: {{domains: [{name}, other]}}\ntarget: other\n")
    assert GeneralizationConfig.load(domains).data.domains == [name, "other"]
    found = GeneralizationConfig.load(domains, [f"data.domains=[{name},b c #2]"])
    assert found.data.domains == [name, "b c #2"]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1))
@example("photos #2")
@example("a: b")
@example("'quoted'")
@example("~/photos")
@example("~")
@example("&x *y !z")
@example(" blanks ")
def test_any_text_arrives_as_it_is(text):
    """And, where it is one line, stands in the run's saved config. A text in brackets is a list of domains."""
    assume(not (text.startswith("[") and text.endswith("]")))
    config = AdaptationConfig.load(
        "visda_source", ["data.dataset=null", f"data.target={text}", f"data.source=./{text}"]
    )
    assert (config.data.target, config.data.source) == (os.path.expanduser(text), f"./{text}")
    if text.splitlines() == [text]:
        assert AdaptationConfig.model_validate(typed(load_yaml(config.to_yaml()), AdaptationConfig)) == config


def test_brackets_are_several_domains_and_a_folder_of_such_a_name_has_a_way():
    config = AdaptationConfig.load(
        "visda_source", ["data.dataset=null", "data.source=[a, ~/b]", "data.target=./[a, b]"]
    )
    assert (config.data.source, config.data.target) == (["a", os.path.expanduser("~/b")], "./[a, b]")


@pytest.mark.parametrize(
    ("declared", "text", "value"),
    [
        (str, "null", "null"),
        (str, "", None),
        (str | None, "null", None),
        (str | None, "~", None),
        (str | None, "None", "None"),
        (int | None, "null", None),
        (int, "7", 7),
        (bool, "off", False),
        (Literal["none", "on"], "on", "on"),
        (str | list[str], "photo", "photo"),
        (str | list[str], "[photo, 2017,on]", ["photo", "2017", "on"]),
        (str | list[str], "[photo #2, cartoon]", ["photo #2", "cartoon"]),
        (str | list[str], "[]", []),
        (list[str], "mine.py", ["mine.py"]),
        (list[str], "['a, b', it's, \"c\"]", ["a, b", "it's", "c"]),
        (list[str], "[data.domains=[a,b], seed=1]", ["data.domains=[a,b]", "seed=1"]),
        (list[str], "[a,'b]", ["a", "'b"]),
        (list[str] | None, "null", None),
        (dict[str, str], "{on: 010, b: 'c #1'}", {"on": "010", "b": "c #1"}),
        (dict[str, int], "{2017: 5}", {"2017": 5}),
        (tuple[float, ...], "[1, .5]", [1, 0.5]),
        (int, "1 #2", "1 #2"),
        (int, "010", "010"),
    ],
)
def test_words_by_the_declared_type(declared, text, value):
    """What is not a text is YAML without comments, dates, octal numbers and numbers to base 60."""
    assert typed(read_word(text, declared), declared) == value


def test_numbers_are_decimal(own):
    """`010` is ten. YAML 1.1 would make it eight, and another run's folder."""
    assert AdaptationConfig.load(own, ["seed=010"]).seed == 10
    with pytest.raises(ConfigError, match=r"seed: input should be a valid integer.*got '1:30'"):
        AdaptationConfig.load(own, ["seed=1:30"])
    assert AdaptationConfig.load(own, ["runtime.tf32=off", "source.optim.nesterov=no"]).runtime.tf32 is False


def test_settings_of_a_method_are_read_by_its_options(tmp_path, own, monkeypatch):
    """Also of a method that a plugin registers, in a file and on the command line."""
    monkeypatch.setattr(ADAPTATION_METHODS, "_entries", dict(ADAPTATION_METHODS._entries))
    plugin = write(
        tmp_path / "texts.py",
        "from uda.adaptation.methods import ADAPTATION_METHODS, AdaptationMethod\n"
        "from uda.core.settings import Settings\n"
        "@ADAPTATION_METHODS.register('test_typed_texts')\n"
        "class Texts(AdaptationMethod):\n"
        "    'Has a text.'\n"
        "    class Options(Settings):\n"
        "        file: str = 'x'\n"
        "        names: list[str] = []\n"
        "        steps: int = 1\n",
    )
    text = (
        f"_base_: own.yaml\nplugins: [{plugin}]\nmethod: test_typed_texts\nmethod_options: {{file: 010, names: [on]}}\n"
    )
    config = AdaptationConfig.load(write(tmp_path / "mine.yaml", text), ["method_options.steps=3"])
    assert config.method_options == {"file": "010", "names": ["on"], "steps": 3}
    assert AdaptationConfig.load(tmp_path / "mine.yaml", ["method_options.file=a #2"]).method_options["file"] == "a #2"
    with pytest.raises(ConfigError, match=r"method_options\.steps: input should be a valid integer"):
        AdaptationConfig.load(tmp_path / "mine.yaml", ["method_options.steps=on #2"])


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["seed", "=", "1"], "'seed = 1': overrides are written key=value, did you mean seed=1?"),
        (["seed", "=1"], "'seed =1': overrides are written key=value, did you mean seed=1?"),
        (["seed=", "1"], "'seed= 1': overrides are written key=value, did you mean seed=1?"),
        (["data.target = b c"], "'data.target = b c': overrides are written key=value, did you mean data.target=b c?"),
        (["=1"], "'=1': overrides are written key=value, for example seed=1"),
        (
            ["data.target=[a,", "b]"],
            "'b]': overrides are written key=value, for example seed=1; a list with spaces in it needs quotes",
        ),
        (["b.yaml"], "'b.yaml': overrides are written key=value, for example seed=1; is it a config? --cfg b.yaml"),
    ],
)
def test_blanks_around_the_sign_are_one_mistake_with_its_cure(words, cure, own):
    with pytest.raises(ConfigError) as caught:
        AdaptationConfig.load(own, ["self_training.rounds=3", *words, "output=x"])
    assert str(caught.value) == f"command line: {cure}"


def test_what_stands_twice_or_empty_on_the_command_line(own):
    """The last one counts, as tables rely on; an empty value is none, where there may be none."""
    config = AdaptationConfig.load(own, ["seed=1", "seed=2", "output=x", "output="])
    assert (config.seed, config.output) == (2, None)
    with pytest.raises(ConfigError, match=r"data\.target: give a name or a list of names; got None"):
        AdaptationConfig.load(own, ["data.target="])


@pytest.mark.parametrize("text", ["data: &a {source: a, target: *a}", "a: " + "[" * 5000, "data: {? {a: b} : c}"])
def test_odd_files_get_one_line(text, tmp_path):
    with pytest.raises(ConfigError, match=r"^\S*/odd\.yaml: not valid YAML: [^\n]*$"):
        AdaptationConfig.load(write(tmp_path / "odd.yaml", text))


CARD = """\
name: years
title: Years
paper: none
url: https://example.org
licence: none
folder: 010
num_classes: 2
classes: [on, off]
domains:
  2017: {path: 2017, per_class: {on: 1, off: 2}, images: 3}
  2024-05-17: {path: [2024-05-17, null]}
"""


def test_a_card_s_names_are_texts(tmp_path):
    card = load_card(write(tmp_path / "years.yaml", CARD))
    assert (card.folder, card.classes, list(card.domains)) == ("010", ("on", "off"), ["2017", "2024-05-17"])
    assert card.domain("2017").paths == ("2017",) and card.domain("2017").per_class == {"on": 1, "off": 2}
    assert card.domain("2024-05-17").paths == ("2024-05-17", "null")


def test_a_table_s_names_are_texts(tmp_path):
    rows = "rows: [{name: 1e3, cfg: own.yaml, set: [seed=1]}, {name: on, cfg: own.yaml, start: 1e3}]\n"
    table = load_table(write(tmp_path / "on.yaml", f"name: 2017\nseeds: [0, 010]\npairs: [[2017, 010]]\n{rows}"))
    assert (table.name, table.pairs, table.seeds) == ("2017", [("2017", "010")], [0, 10])
    assert [(row.name, row.start) for row in table.rows] == [("1e3", None), ("on", "1e3")]


def test_words_within_words(tmp_path):
    """A study's `set=[...]` holds words for its runs, which are read by their own types."""
    run = "human: {file: people.csv}\ndata: {dataset: null, train: a, test: b}\n"
    write(tmp_path / "run.yaml", run)
    study = write(
        tmp_path / "study.yaml", f"runs: [{{cfg: {tmp_path / 'run.yaml'}, seeds: [010]}}]\nset: [data.root=010]\n"
    )
    (config,) = trainings(load_study(study, ["set=[human.file=a #2,data.test=2017]", "output=on"]))
    assert (config.human.file, config.data.test, config.data.root, config.seed) == ("a #2", "2017", "010", 10)
    assert load_study(study, ["output=on"]).output == "on"
    assert sections(["data.root=photos #2", "runtime.threads=2"]).data.root == "photos #2"


def test_a_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch, own):
    """In a config and on the command line, for all that can be a path; a folder of that name is ./~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "plug.py", "")
    words = ["data.root", "data.source", "data.store", "model.weights", "source.checkpoint", "output"]
    text = "_base_: ~/own.yaml\nplugins: [~/plug.py]\ndata: {target: ~/t, root: ./~/r}\n"
    config = AdaptationConfig.load(write(tmp_path / "home.yaml", text), [f"{word}=~/x" for word in words[1:]])
    values = [config.data.source, config.data.store, config.model.weights, config.source.checkpoint, config.output]
    assert values == [f"{tmp_path}/x"] * 5
    assert (config.data.target, config.data.root) == (f"{tmp_path}/t", "./~/r")
    assert config.plugins == [f"{tmp_path}/plug.py"] and config.folder == tmp_path / "x"
    assert AdaptationConfig.load("~/home.yaml", ["plugins=~/plug.py"]).plugins == [f"{tmp_path}/plug.py"]
    domains = ["data.dataset=null", "data.domains=[~/a,./~]", "target=~/a"]
    config = GeneralizationConfig.load("rotated_digits_erm", domains)
    assert config.data.domains == [f"{tmp_path}/a", "./~"] and config.target == f"{tmp_path}/a"
    monkeypatch.setenv("UDA_DATA", "~/data")
    monkeypatch.setenv("UDA_STORE", "~/store")
    assert default_folder() == tmp_path / "store"
    (tmp_path / "data" / "010").mkdir(parents=True)
    card = load_card(str(write(tmp_path / "years.yaml", CARD)).replace(str(tmp_path), "~"))
    assert card.find_root() == card.find_root("~/data/010") == tmp_path / "data" / "010"


def test_what_was_read_belongs_to_the_reader():
    text = "a: {b: [1, 2]}"
    first = load_yaml(text)
    first["a"]["b"].append(3)
    first["c"] = 4
    assert typed(load_yaml(text), Any) == {"a": {"b": [1, 2]}}
