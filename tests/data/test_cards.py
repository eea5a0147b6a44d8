import re

import pytest
import yaml

from tests.data.trees import make_folders, make_visda
from uda.cli.main import main
from uda.core.errors import UserError
from uda.data.cards import CARDS, Shelf, load_card
from uda.data.domains import load_domains
from uda.data.inventory import table, take_stock
from uda.data.settings import DataSettings

VISDA_COUNTS = {"train": 152_397, "validation": 55_388}


@pytest.mark.parametrize("name", sorted(CARDS))
def test_every_card_says_where_it_comes_from_and_its_counts_add_up(name):
    card = CARDS[name]
    assert card.name == name and card.paper and card.url and card.licence and card.notes
    assert len(card.domains) >= (2 if card.task == "classification" else 1)
    for domain in card.domains.values():
        assert domain.images is None or domain.images >= card.num_classes
        if domain.per_class:
            assert sum(domain.per_class.values()) == domain.images and set(domain.per_class) == set(card.classes)


def test_published_totals():
    assert {name: domain.images for name, domain in CARDS["visda2017"].domains.items()} == VISDA_COUNTS
    assert sum(domain.images for domain in CARDS["pacs"].domains.values()) == 9991
    assert sum(domain.images for domain in CARDS["office31"].domains.values()) == 4110
    assert sum(domain.images for domain in CARDS["office_home"].domains.values()) == 15_588
    assert sum(domain.images for domain in CARDS["vlcs"].domains.values()) == 10_729
    assert sum(domain.images for domain in CARDS["rotated_digits"].domains.values()) == 5000
    assert sum(domain.images for domain in CARDS["domainnet"].domains.values()) == 586_575


def test_describe_gives_one_line_a_card():
    lines = dict(CARDS.describe())
    assert list(lines) == sorted(CARDS)
    assert lines["pacs"] == "PACS: 7 classes; domains art_painting, cartoon, photo, sketch"


def test_unknown_card_and_domain_name_the_nearest():
    with pytest.raises(UserError, match=r"did you mean 'visda2017'.*known: camvid, cifar10, cityscapes, digits, "):
        load_card("visda17")
    with pytest.raises(UserError, match="no such card: some/where"):
        load_card("some/where/toys.yaml")
    with pytest.raises(UserError, match="pacs: unknown domain 'skech', did you mean 'sketch'"):
        CARDS["pacs"].domain("skech")


TOYS = {
    "name": "toys",
    "title": "Toys",
    "paper": "none",
    "url": "nowhere",
    "licence": "free",
    "folder": "Toys",
    "classes": ["bear", "car"],
    "num_classes": 2,
    "domains": {
        "photo": {"path": "photo", "images": 4, "per_class": {"bear": 2, "car": 2}},
        "drawn": {"path": "drawn"},
    },
}


def write_card(folder, **changes):
    path = folder / "toys.yaml"
    path.write_text(yaml.safe_dump(TOYS | changes, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clases": 1}, "toys.yaml: clases: unknown key, did you mean 'classes'"),
        ({"num_classes": 3}, "toys.yaml: classes: 2 names, 2 of them different, but num_classes is 3"),
        (
            {"domains": {"photo": {"path": "p", "images": 5, "per_class": {"bear": 2, "car": 2}}}},
            "adds up to 4, but images is 5",
        ),
        ({"domains": {"photo": {"path": "p", "images": 4, "per_class": {"bear": 2, "cat": 2}}}}, "differ: car, cat"),
        ({"ids": {0: "bear"}, "channel": 0}, "ids, channel: only for data sets with label maps; write task: segm"),
        ({"domains": {"photo": {"path": "p", "maps": "m"}}}, "domains.photo.maps: only for data sets with label maps"),
        ({"task": "segmentation"}, "ids: a data set with label maps needs them"),
        ({"layout": "lists"}, "the layout 'lists' needs a list"),
        ({"name": "games"}, "name is 'games', but the file is called 'toys'"),
    ],
)
def test_wrong_cards(tmp_path, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_card(write_card(tmp_path, **changes))


SCENES = {
    **{key: TOYS[key] for key in ("title", "paper", "url", "licence", "folder")},
    "name": "scenes",
    "task": "segmentation",
    "ids": {7: "road", 8: "car", 9: "road"},
    "ignore": [0],
    "domains": {"photo": {"path": "photo", "maps": "photo_maps"}},
}


def write_scenes_card(folder, **changes):
    path = folder / "scenes.yaml"
    path.write_text(yaml.safe_dump(SCENES | changes, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ignore": [0, 8]}, "in `ids` and in `ignore`: 8"),
        ({"classes": ["road", "bus"]}, "ids and classes differ: bus, car"),
        ({"colors": {"bus": [1, 2, 3]}}, "colors: not among the classes: bus"),
        ({"colors": {"car": [1, 2, 256]}}, "car: needs three numbers from 0 to 255, got [1, 2, 256]"),
        ({"ids": {70000: "road", 8: "car"}}, "values of label maps must be 0..65535"),
        ({"ids": {"sky": "road", 8: "car"}}, "scenes.yaml: ids.sky"),
        ({"num_classes": 3}, "2 names, 2 of them different, but num_classes is 3"),
        (
            {"domains": {"photo": {"path": "p", "images": 1, "per_class": {"road": 1, "car": 0}}}},
            "domains.photo.per_class: here pixels have classes, not images; remove it",
        ),
    ],
)
def test_wrong_cards_of_label_maps(tmp_path, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_card(write_scenes_card(tmp_path, **changes))


def test_a_card_of_label_maps_names_its_classes_in_order_and_codes_those_of_a_run(tmp_path):
    card = load_card(write_scenes_card(tmp_path))
    assert (card.classes, card.num_classes) == (("road", "car"), 2)
    coding = card.coding(["bus", "car"])
    assert coding.ids == {8: 1} and coding.ignore == {0, 7, 9}
    ordered = load_card(write_scenes_card(tmp_path, classes=["car", "road"]))
    assert ordered.coding(ordered.classes).ids == {7: 1, 8: 0, 9: 1}


def test_cards_of_streets_number_the_classes_as_published():
    """The train ids of Cityscapes; SYNTHIA has 16 of its 19 classes in the same order."""
    cityscapes, gta5, synthia = (CARDS[name] for name in ("cityscapes", "gta5", "synthia"))
    numbers = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    for card in (cityscapes, gta5):
        assert card.coding(card.classes).ids == {value: number for number, value in enumerate(numbers)}
        assert set(card.colors) == set(card.classes)
    assert list(synthia.classes) == [name for name in gta5.classes if name not in ("terrain", "truck", "train")]
    of_cityscapes = [
        (3, 0),
        (4, 1),
        (2, 2),
        (21, 3),
        (5, 4),
        (7, 5),
        (15, 6),
        (9, 7),
        (6, 8),
        (1, 10),
        (10, 11),
        (17, 12),
    ]
    of_cityscapes += [(8, 13), (19, 15), (12, 17), (11, 18)]
    assert synthia.coding(cityscapes.classes).ids == dict(of_cityscapes)
    assert synthia.coding(cityscapes.classes).ignore == {0, 13, 14, 16, 18, 20, 22}


def test_a_card_of_label_maps_is_refused_where_images_need_a_class(tmp_path):
    settings = DataSettings(dataset=str(write_scenes_card(tmp_path)), source="photo", target="drawn")
    with pytest.raises(UserError, match=r"data\.dataset: 'scenes' has a class for each pixel"):
        load_domains(settings, 0, print)


def test_broken_yaml_names_the_file(tmp_path):
    (tmp_path / "toys.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"toys\.yaml: not valid YAML"):
        load_card(tmp_path / "toys.yaml")


def test_a_new_card_is_a_new_dataset(tmp_path):
    write_card(tmp_path)
    assert list(Shelf(tmp_path)) == ["toys"] and Shelf(tmp_path)["toys"].classes == ("bear", "car")


def test_data_lie_at_root_in_uda_data_in_datasets_or_beside_the_card(tmp_path, in_folder, monkeypatch):
    """The first of these places counts. The error names them in this order."""
    (tmp_path / "cards").mkdir()
    card = load_card(write_card(tmp_path / "cards"))
    monkeypatch.setenv("UDA_DATA", str(tmp_path / "shared"))
    places = [tmp_path / folder / "Toys" for folder in ("shared", "datasets", "cards")]
    assert card.places() == places
    with pytest.raises(UserError, match="elsewhere: download"):
        card.find_root(str(tmp_path / "elsewhere"))
    with pytest.raises(UserError) as missing:
        card.find_root()
    assert str(missing.value).startswith(f"Toys is not at data.root (not set) or {' or '.join(map(str, places))}: ")
    assert f"download it from nowhere and unpack it so that {places[0] / 'photo'} exists" in str(missing.value)
    for place in reversed(places):
        place.mkdir(parents=True)
        assert card.find_root() == place
    assert card.find_root(str(tmp_path)) == tmp_path


def test_without_uda_data_the_next_place_is_datasets_in_the_current_folder(in_folder, monkeypatch):
    monkeypatch.delenv("UDA_DATA", raising=False)
    assert CARDS["office31"].places() == [in_folder / "datasets" / CARDS["office31"].folder]
    with pytest.raises(UserError) as missing:
        CARDS["visda2017"].find_root()
    for part in (
        f"data.root (not set) or $UDA_DATA/visda2017 (UDA_DATA is not set) or {in_folder / 'datasets' / 'visda2017'}: ",
        f"so that {in_folder / 'datasets' / 'visda2017' / 'train'} exists",
    ):
        assert part in str(missing.value)


def test_a_card_in_datasets_has_a_name_but_never_replaces_one_of_ours(in_folder, monkeypatch):
    monkeypatch.delenv("UDA_DATA", raising=False)
    (in_folder / "datasets" / "Toys").mkdir(parents=True)
    path = write_card(in_folder / "datasets")
    for name in ("toys", "toys.yaml"):
        assert load_card(name).title == "Toys"
    assert load_card("toys").places() == [path.parent / "Toys"]
    (in_folder / "datasets" / "pacs.yaml").write_text(yaml.safe_dump(TOYS | {"name": "pacs"}))
    assert load_card("pacs").title == "PACS"


def test_stock_names_what_is_missing_and_what_is_odd(tmp_path):
    card = load_card(write_card(tmp_path))
    make_folders(tmp_path / "Toys" / "photo", ["bear", "doll"], per_class=2)
    counts = {(count.domain, count.label): count for count in take_stock(card)}
    assert counts["photo", None].right and counts["photo", "bear"].right
    assert (counts["photo", "car"].found, counts["photo", "car"].note) == (0, "missing")
    assert counts["photo", "doll"].note == "not a class of the card"
    assert counts["drawn", None].note == "no folder drawn"
    lines = table(list(counts.values())).splitlines()
    assert next(line.split() for line in lines if "car" in line) == ["car", "2", "0", "missing"]


def test_stock_counts_as_a_run_does(tmp_path):
    """Every real folder once, in what is hidden nothing, and names that look equal are equal."""
    composed, decomposed = "\N{LATIN SMALL LETTER E WITH ACUTE}mu", "e\N{COMBINING ACUTE ACCENT}mu"
    photo = {"path": "photo", "images": 4, "per_class": {"bear": 2, decomposed: 2}}
    card = load_card(write_card(tmp_path, classes=["bear", composed], domains={"photo": photo}))
    assert card.classes == tuple(card.domains["photo"].per_class) == ("bear", composed)
    root = make_folders(tmp_path / "Toys" / "photo", ["bear", decomposed], per_class=2)
    (root / "bear" / "loop").symlink_to("..")
    make_folders(root / "bear", [".hidden"])
    assert all(count.right for count in take_stock(card)), table(take_stock(card))
    make_folders(tmp_path / "Toys" / "drawn", [composed, "bear"], per_class=1)
    (tmp_path / "drawn.txt").write_text(f"bear/bear_0.jpg bear\n{decomposed}/{composed}_0.jpg {decomposed}\n")
    (tmp_path / "drawn.txt").rename(tmp_path / "Toys" / "drawn.txt")
    drawn = {"path": "drawn", "list": "drawn.txt", "images": 2, "per_class": {"bear": 1, composed: 1}}
    card = load_card(write_card(tmp_path, classes=["bear", decomposed], domains={"photo": photo, "drawn": drawn}))
    assert all(count.right for count in take_stock(card)), table(take_stock(card))
    config = DataSettings(dataset=str(tmp_path / "toys.yaml"), source="photo", target="drawn")
    domains = load_domains(config, 0, print)
    assert domains.classes == ("bear", composed) and domains.target_labels.reveal().tolist() == [0, 1]


def check_data(words):
    return main(["check-data", *words])


def test_check_data_ends_with_0_1_or_2(tmp_path, capsys):
    card = str(write_card(tmp_path, domains={"photo": TOYS["domains"]["photo"]}))
    assert check_data([card]) == 2
    assert "download it from" in capsys.readouterr().err
    root = make_folders(tmp_path / "other" / "photo", ["bear", "car"], per_class=2).parent
    assert check_data([card, "--root", str(root)]) == 0
    (root / "photo" / "car" / "car_0.jpg").unlink()
    assert check_data([card, "--root", str(root)]) == 1
    assert re.search(r"car +2 +1 +-1\n", capsys.readouterr().out)
    assert check_data(["pasc"]) == 2
    with pytest.raises(SystemExit) as stopped:
        check_data([card, "--all"])
    assert stopped.value.code == 2


def test_check_data_counts_the_images_that_a_list_names(tmp_path, capsys):
    folder = make_visda(tmp_path, per_class=2)
    (folder / "train" / "bus" / "src_1_00004.png").unlink()
    counts = {(count.domain, count.label): count for count in take_stock(CARDS["visda2017"], str(folder))}
    assert counts["train", "bus"].found == 1 and counts["train", "car"].found == 2
    assert counts["train", None].note == "1 listed images missing, such as bus/src_1_00004.png"
    assert counts["validation", None].found == 24
    assert check_data(["visda2017", "--root", str(folder)]) == 1
