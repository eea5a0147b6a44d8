"""A dry run before the data are there: the plan by the card, a cost from random images, and what to download."""

import numpy as np
import pytest
import yaml

from tests.data.trees import make_folders
from tests.in_process import adapt
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.dry_run import missing_data, size
from uda.adaptation.run import AdaptationRun
from uda.core.distributed import Ranks
from uda.core.resources import CHECKOUT
from uda.data.cards import CARDS, load_card
from uda.data.loaders import Batches
from uda.data.random_images import random_domains
from uda.training import pace
from uda.training.pace import Pace, Trials

TOYS = {
    "name": "toys",
    "title": "Toys",
    "paper": "none",
    "url": "https://example.org/toys",
    "licence": "any",
    "files": [{"name": "toys.zip", "url": "https://example.org/toys.zip", "bytes": 123_456_789, "sha256": "ab" * 32}],
    "folder": "Toys",
    "classes": ["bear", "car"],
    "num_classes": 2,
    "domains": {
        "drawn": {"path": "drawn", "images": 40, "per_class": {"bear": 10, "car": 30}},
        "photo": {"path": "photo", "images": 24},
    },
}
SMALL = (
    "transforms.size=24",
    "transforms.resize=28",
    "model.backbone=digits_cnn",
    "self_training.batch={source: 8, selected: 8}",
)


@pytest.fixture
def toys(in_folder, monkeypatch):
    """Words that run on a card whose images are not there; nothing may be written into the working folder."""
    monkeypatch.setenv("UDA_DATA", str(in_folder / "data"))
    monkeypatch.setattr(pace, "MEASURED", 1)

    def words(**changes):
        folder = in_folder.parent / "cards"
        folder.mkdir(exist_ok=True)
        (folder / "toys.yaml").write_text(yaml.safe_dump(TOYS | changes))
        names = [f"data.dataset={folder / 'toys.yaml'}", "data.source=drawn", "data.target=photo"]
        return ["--cfg", "pacs_avh.yaml", *SMALL, *names, "source.batch_size=16", "runtime.workers=0", "--dry-run"]

    return words


def test_the_plan_the_cost_and_what_to_download(toys, in_folder, monkeypatch, capsys):
    monkeypatch.setattr(Batches, "_loaded", None)  # random images come without loader processes
    assert adapt([*toys(), "source.steps=null", "source.epochs=2", "model.weights=hub", "runtime.workers=3"]) == 0
    out = capsys.readouterr().out
    assert ", 3 workers\n" in out, "what the run itself will have"
    assert "data     40 labelled source images, 24 target images, 2 classes" in out
    assert "source   6 steps of 16" in out, "40 images are 2 batches and a rest of 8 images, twice"
    assert "images predicted: about" in out and "of it waiting" not in out
    assert "estimated from random images, without loading" in out
    assert f"download Toys, to unpack in {in_folder / 'data' / 'Toys'}\n" in out
    assert f"toys.zip    123 MB  https://example.org/toys.zip  sha256 {'ab' * 32}\n" in out
    assert "timm's hub" not in out, "timm has no digits_cnn"
    last = out.rstrip().split("\n")[-1]
    assert last.startswith("data missing: Toys is not at") and last.endswith("nothing was written")
    assert list(in_folder.iterdir()) == []


def test_weights_from_the_hub_are_told_with_their_size(toys, monkeypatch, capsys):
    """timm's smallest ResNet has 0.37 million parameters of 4 bytes in its body."""
    monkeypatch.setattr(AdaptationRun, "trials", lambda run: Trials({}, 0, Pace(1, 1, 1)))
    assert adapt([*toys(), "model.backbone=test_resnet.r160_in1k", "model.weights=hub"]) == 0
    assert "weights  test_resnet.r160_in1k from timm's hub, 1 MB, when the run begins" in capsys.readouterr().out


def test_a_card_without_addresses_says_where_its_data_are(toys, monkeypatch, capsys):
    monkeypatch.setattr(AdaptationRun, "trials", lambda run: Trials({}, 0, Pace(1, 1, 1)))
    assert adapt(toys(files=[], notes="One folder per domain.")) == 0
    assert "download Toys from https://example.org/toys, to " in (out := capsys.readouterr().out)
    assert "One folder per domain." in out


def test_parts_that_are_missing_are_named_and_whole_data_are_used(toys, in_folder, capsys):
    root = in_folder / "data" / "Toys"
    make_folders(root / "drawn", ["bear", "car"], per_class=10)
    lists = {"drawn": {"path": "drawn", "images": 20}, "photo": {"path": "photo", "list": "photo.txt", "images": 24}}
    assert adapt(toys(domains=lists)) == 0
    assert f"data missing: {root / 'photo'}: no such folder" in capsys.readouterr().out
    make_folders(root / "photo", ["bear", "car"], per_class=12)
    every = {"drawn": lists["drawn"] | {"list": "drawn.txt"}, "photo": lists["photo"]}
    (root / "drawn.txt").write_text(
        "".join(f"{path.relative_to(root / 'drawn')} 0\n" for path in root.glob("drawn/*/*"))
    )
    assert adapt(toys(domains=every, layout="lists")) == 0
    assert f"data missing: {root / 'photo.txt'}: no such list" in capsys.readouterr().out
    assert adapt([*toys(domains=lists), "model.weights=none"]) == 0
    assert "dry run: config, data and network are right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"domains": {"drawn": {"path": "drawn"}, "photo": {"path": "photo"}}}, [], "download it from"),
        ({}, ["data.target_labelled=few.txt"], "download it from"),
        ({}, ["data.dataset=null"], "no such folder: drawn"),
        ({}, ["data.target=fotos"], "unknown domain 'fotos', did you mean 'photo'"),
    ],
)
def test_what_no_card_counts_is_a_mistake_as_ever(toys, capsys, changes, words, message):
    assert adapt([*toys(**changes), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_has_begun_and_a_run_itself_want_their_data(toys, in_folder, capsys):
    assert adapt([word for word in toys() if word != "--dry-run"]) == 2
    (in_folder / "run").mkdir()
    assert adapt([*toys(), "output=run"]) == 2
    assert capsys.readouterr().err.count("Toys is not at") == 2


def test_all_processes_rehearse_where_one_lacks_the_data(toys, in_folder):
    for domain in ("drawn", "photo"):
        (in_folder / "data" / "Toys" / domain).mkdir(parents=True)
    config = AdaptationConfig.load("pacs_avh.yaml", [word for word in toys()[2:] if word != "--dry-run"])
    ranks = Ranks()
    assert missing_data(config, ranks) is None
    ranks.gather_texts = lambda mine: [mine, "Toys is not there"]
    assert missing_data(config, ranks) == "Toys is not there"


@pytest.mark.parametrize("path", sorted(CHECKOUT.glob("configs/visda_*.yaml")), ids=lambda path: path.stem)
def test_every_visda_config_is_planned_before_its_data_are_there(path, in_folder, monkeypatch, capsys):
    """By the numbers of its card; what is measured is left out here."""
    monkeypatch.setenv("UDA_DATA", str(in_folder))
    monkeypatch.setattr(AdaptationRun, "trials", lambda run: Trials({}, 0, Pace(1, 1, 1)))
    assert adapt(["--cfg", path.name, *SMALL[:3], "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "152,397 labelled source images, 55,388 target images, 12 classes" in out
    assert "train.tar         7.7 GB  http://csr.bu.edu/" in out and "validation.tar    1.0 GB  http" in out
    assert "uda check-data visda2017\ndata missing: VisDA-2017 is not at" in out


def test_random_images_are_as_many_of_each_class_as_the_card_has():
    card = CARDS["pacs"]
    domains = random_domains(card, ["photo", "cartoon"], ["sketch"], 40)
    assert (len(domains.source.images), len(domains.target.images)) == (1670 + 2344, 3929)
    assert np.bincount(domains.source.domain).tolist() == [1670, 2344] and set(domains.target.domain) == {2}
    dogs, house = card.classes.index("dog"), card.classes.index("house")
    assert np.bincount(domains.source.labels)[dogs] == 189 + 389
    assert np.bincount(domains.target_labels.reveal())[house] == 80
    image = domains.source.images.take(np.array([7])).read(0)
    assert image.shape == (3, 40, 40) and image.float().std() > 50


def test_a_file_to_download_is_checked(tmp_path):
    files = [{"name": "toys.zip", "url": "https://example.org/toys.zip", "bytes": 0, "sh256": "ab"}]
    (tmp_path / "toys.yaml").write_text(yaml.safe_dump(TOYS | {"files": files}))
    with pytest.raises(Exception, match=r"files\.0\.sh256: unknown key, did you mean 'sha256'") as raised:
        load_card(tmp_path / "toys.yaml")
    assert "files.0.bytes" in str(raised.value)


def test_sizes_are_written_as_people_do():
    assert [size(count) for count in (7_698_031_104, 999_000_000, 170_000_640)] == ["7.7 GB", "999 MB", "170 MB"]
