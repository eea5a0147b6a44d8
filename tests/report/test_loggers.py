"""Loggers: what they get, what becomes of one that fails, TensorBoard's files, names and older configs."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.in_process import adapt
from uda.adaptation.config import AdaptationConfig
from uda.core.errors import UserError
from uda.core.files import OutputError
from uda.report.loggers import LOGGERS, Logger, Loggers, TensorBoard
from uda.report.run_report import settings_of
from uda.trained_run import load_run

CONFIG = AdaptationConfig.load("digits_avh")


@pytest.fixture
def register():
    """Registers loggers for one test."""
    names = []

    def register(name, kind):
        names.append(name)
        LOGGERS.register(name)(kind)

    yield register
    for name in names:
        LOGGERS._entries.pop(name, None)


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def series(folder):
    """All scalars of an event folder: step and value by tag."""
    events = read(folder)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


class Keeper(Logger):
    """Keeps its calls."""

    def __init__(self, *given):
        self.given, self.calls = given, []
        Keeper.last = self

    def scalars(self, *given):
        self.calls.append(("scalars", *given))

    def hparams(self, *given):
        self.calls.append(("hparams", *given))

    def close(self):
        self.calls.append(("close",))


def test_a_logger_gets_its_run_and_known_numbers(register, tmp_path):
    register("keeper", Keeper)
    warnings = []
    loggers = Loggers(["keeper"], warnings.append, tmp_path, CONFIG, 3, 41)
    assert Keeper.last.given == (tmp_path, CONFIG, 3, 41) and loggers
    loggers.scalars(3, "group", {"a": 1, "none": None, "nan": float("nan"), "numpy": np.float32(0.5)})
    loggers.training(41, {"loss": 1.0})
    for what, *given in (
        ("text", 3, "name", "text"),
        ("image", 3, "name", np.zeros((2, 2, 3), np.uint8)),
        ("histogram", 3, "name", np.ones(3)),
        ("embedding", 3, "name", np.ones((1, 2)), {"a": ["b"]}, np.zeros((1, 2, 2, 3), np.uint8)),
    ):
        getattr(loggers, what)(*given)
    loggers.flush()
    loggers.hparams(4, {"seed": 0}, {"final/im": 0.5, "oracle/final": None})
    assert (loggers.take("scalars"), loggers.take("image"), loggers.take("histogram")) == (True, False, False)
    loggers.close()
    assert Keeper.last.calls == [
        ("scalars", 3, "group", {"a": 1.0, "numpy": 0.5}),
        ("hparams", 4, {"seed": 0}, {"final/im": 0.5}),
        ("close",),
    ]
    assert warnings == [] and not loggers


class Broken(Keeper):
    """A network that is down."""

    def scalars(self, *given):
        super().scalars(*given)
        raise ConnectionError("no route\nto host")


class NotEvenMade(Logger):
    """A service that knows nobody."""

    def __init__(self, *given):
        raise RuntimeError("log in first")


def test_a_logger_that_fails_is_left_out_with_one_warning(register, tmp_path):
    for name, kind in (("broken", Broken), ("keeper", Keeper), ("unmade", NotEvenMade)):
        register(name, kind)
    warnings = []
    loggers = Loggers(["broken", "keeper", "unmade"], warnings.append, tmp_path, CONFIG, 0, 1)
    for report in range(3):
        loggers.scalars(report, "group", {"a": 1.0})
    loggers.close()
    left_out = "failed and gets no more figures until the next start"
    assert warnings == [
        f"warning: logger 'unmade' {left_out}: RuntimeError: log in first",
        f"warning: logger 'broken' {left_out}: ConnectionError: no route to host",
    ]
    assert len(Keeper.last.calls) == 4, "the other one goes on"


def test_a_mistake_ends_the_run(register, tmp_path):
    class Mistaken(Logger):
        def scalars(self, *given):
            raise UserError("no such project")

    register("mistaken", Mistaken)
    with pytest.raises(UserError, match="no such project"):
        Loggers(["mistaken"], print, tmp_path, CONFIG, 0, 1).scalars(0, "a", {"b": 1})


# TensorBoard


def test_tensorboard_s_tags_and_axes(tmp_path):
    board = TensorBoard(tmp_path, CONFIG, -1, 1)
    assert not (tmp_path / "tb").exists(), "nothing before the first figure"
    for report in (-1, 0, 1):
        board.scalars(report, "oracle_class", {"ape": 0.5})
        board.scalars(report, "validator", {"im": report / 2})
        board.histogram(report, "target/avh", np.arange(10.0))
        board.image(report, "oracle/confusion", np.zeros((4, 4, 3), np.uint8))
    for step in (20, 40):
        board.training(step, {"training/loss": 1 / step, "learning_rate/backbone": 0.1})
    board.text(-1, "config", "seed: 0")
    board.hparams(2, {"seed": 0, "model.head": None, "classes": ["a"]}, {"final/im": 0.5, "oracle/final": 0.75})
    board.close()
    by_report, by_step = series(tmp_path / "tb"), series(tmp_path / "tb" / "training")
    assert by_report == {
        "z_oracle_class/ape": [(-1, 0.5), (0, 0.5), (1, 0.5)],
        "validator/im": [(-1, -0.5), (0, 0.0), (1, 0.5)],
        "final/im": [(2, 0.5)],
        "z_oracle/final": [(2, 0.75)],
    }
    assert by_step["training/loss"] == [(20, np.float32(1 / 20)), (40, np.float32(1 / 40))]
    tags = read(tmp_path / "tb").Tags()
    assert tags["histograms"] == ["target/avh"] and tags["images"] == ["z_oracle/confusion"]
    assert "config/text_summary" in tags["tensors"]
    plugin = read(tmp_path / "tb").PluginTagToContent("hparams")
    assert set(plugin) == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    assert b"z_oracle/final" in plugin["_hparams_/experiment"] and b"model.head" in plugin["_hparams_/experiment"]


def test_the_oracle_groups_come_last_in_tensorboard(tmp_path):
    """Among all groups that any kind of run has."""
    groups = ["config", "final", "label_free_choice", "lambda", "predicted", "selected", "selection", "target", "test"]
    groups += ["time", "train", "validation", "validation_choice", "validator", "warnings"]
    board = TensorBoard(tmp_path, CONFIG, 0, 1)
    for group in [*groups, "oracle", "oracle_class", "oracle_domain", "oracle_unknown"]:
        board.scalars(0, group, {"x": 1.0})
    board.close()
    assert [tag.split("/")[0] for tag in sorted(series(tmp_path / "tb"), key=str.lower)] == [
        *sorted(groups), "z_oracle", "z_oracle_class", "z_oracle_domain", "z_oracle_unknown"
    ]  # fmt: skip


def test_a_resumed_board_drops_what_the_interrupted_part_wrote(tmp_path, starts_apart):
    """Resumed before round 1 and before step 41; both axes are cut each at its own place."""
    first = TensorBoard(tmp_path, CONFIG, -1, 1)
    for report in (-1, 0, 1, 2):
        first.scalars(report, "a", {"b": 1.0})
    for step in (20, 40, 60):
        first.training(step, {"training/loss": 1.0})
    first.close()
    second = TensorBoard(tmp_path, CONFIG, 1, 41)
    second.scalars(1, "a", {"b": 2.0})
    second.training(60, {"training/loss": 2.0})
    second.close()
    assert series(tmp_path / "tb") == {"a/b": [(-1, 1), (0, 1), (1, 2)]}
    assert series(tmp_path / "tb" / "training") == {"training/loss": [(20, 1), (40, 1), (60, 2)]}


def test_an_embedding_by_hand(tmp_path):
    """Three images: a sprite of two by two places, one of them empty."""
    images = np.stack([np.full((2, 2, 3), shade, np.uint8) for shade in (10, 20, 30)])
    columns = {"predicted": ["ape", "a\tb\nc", ""], "image": ["x.png", "y.png", "z.png"]}
    board = TensorBoard(tmp_path, CONFIG, 0, 1)
    for _ in range(2):  # as after a resume
        board.embedding(1, "target", np.array([[1.0, -2.5], [3, 4], [0.1, 1 / 3]]), columns, images)
    folder = tmp_path / "tb" / "embedding"
    assert (folder / "tensors.tsv").read_text() == "1\t-2.5\n3\t4\n0.1\t0.33333\n"
    assert (folder / "metadata.tsv").read_text() == "predicted\timage\nape\tx.png\na b c\ty.png\n-\tz.png\n"
    with Image.open(folder / "sprite.png") as sprite:
        assert np.asarray(sprite)[::2, ::2, 0].tolist() == [[10, 20], [30, 0]]
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    config = text_format.Parse((tmp_path / "tb" / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (info,) = config.embeddings
    assert (info.tensor_path, list(info.sprite.single_image_dim)) == ("embedding/tensors.tsv", [2, 2])


def test_a_full_disk_ends_the_run_with_an_output_error(tmp_path, monkeypatch):
    board = TensorBoard(tmp_path, CONFIG, 0, 1)
    board.scalars(0, "a", {"b": 1.0})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._writers[tmp_path / "tb"], "flush", full)
    with pytest.raises(OutputError, match="No space left on device"):
        board.flush()
    board.close()


# The key of the config


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("report.loggers=[tensorbord]", "report.loggers: unknown logger 'tensorbord', did you mean 'tensorboard'?"),
        ("report.loggers=[wandb]", "report.loggers: unknown logger 'wandb' (known: tensorboard)"),
        ("report.tensorboard=false", "report.tensorboard: this key is gone; name loggers instead, report.loggers=["),
        ("report.tensorboard=true", "report.tensorboard: this key is gone; name loggers instead, report.loggers=["),
        ("report.loggers=[tensorboard,tensorboard]", "report.loggers: 'tensorboard' is named twice"),
    ],
)
def test_mistakes_in_the_key(word, said, capsys, in_folder):
    assert adapt(["--cfg", "digits_avh.yaml", word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: command line: {said}")


@pytest.mark.parametrize("old", [True, False])
def test_a_run_folder_of_an_older_version_is_resumed_and_opened(old, tiny, in_folder, capsys):
    words = ["--cfg", str(tiny), "output=run"]
    assert adapt(words) == 0
    file = in_folder / "run" / "config.yaml"
    content = yaml.safe_load(file.read_text())
    assert content["report"].pop("loggers") == []
    content["report"]["tensorboard"] = old
    del content["self_training"]["adapt_images"]  # and a key that is newer than the folder
    file.write_text(yaml.safe_dump(content))
    assert load_run("run").config.report.loggers == (("tensorboard",) if old else ())
    assert adapt(words) == 0 and "run is finished" in capsys.readouterr().out
    assert adapt([*words, "self_training.rounds=3"]) == 0
    assert len(json.loads((in_folder / "run" / "results.json").read_text())["rounds"]) == 3
    assert "tensorboard" not in yaml.safe_load(file.read_text())["report"]


def test_one_logger_needs_no_brackets():
    assert AdaptationConfig.load("digits_avh", ["report.loggers=tensorboard"]).report.loggers == ("tensorboard",)


def test_the_settings_of_a_run_for_a_table_of_runs():
    found = settings_of(CONFIG)
    assert found["name"] == "digits_avh" and found["self_training.selector"] == "avc"
    assert not [key for key in found if key.startswith(("runtime.", "report.", "output", "plugin", "data.root"))]
    json.dumps(found)
