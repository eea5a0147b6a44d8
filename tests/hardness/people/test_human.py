"""Human frequencies in the formats in which they are published, and which image is which."""

import json
import re
import zipfile

import numpy as np
import pytest

from uda.core.errors import UserError
from uda.hardness.people.human import HUMAN, HumanFrequencies, guess, read_human
from uda.hardness.people.join import join, join_human
from uda.hardness.scoring.score_table import ScoreTable

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# What three images got: cat 48 of 51, ship 50 of 51, the second cat 5 of 50.
VOTES = np.array([[0, 1, 1, 48, 0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0, 50, 0], [0, 0, 0, 5, 0, 45, 0, 0, 0, 0]])
SHOWN = ["cat", "ship", "cat"]
NAMES = ["test/cat/0000", "test/ship/0000", "test/cat/0001"]
HSF = [48 / 51, 50 / 51, 0.1]


def counts_csv(folder):
    """As the shared table has it."""
    head = ["test_index", "image", "true_class", *(f"human_{name}" for name in CLASSES)]
    rows = [[i, f"{NAMES[i]}.jpg", SHOWN[i], *VOTES[i]] for i in range(3)]
    path = folder / "counts.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in [head, *rows]) + "\n")
    return path


def counts_npy(folder, votes=VOTES, name="cifar10h-counts.npy"):
    path = folder / name
    np.save(path, votes)
    (folder / "test_order.txt").write_text("".join(f"{name}.png\n" for name in NAMES))
    return path


RAW = (
    "annotator_id,trial_index,is_attn_check,true_category,subcategory,chosen_category,true_label,chosen_label,"
    "correct_guess,cifar10_test_test_idx,image_filename,reaction_time,time_elapsed"
)


def raw_csv(folder, check=("1", "0")):
    """A vote a line, in an order of its own, with three attention checks, which have no number."""
    lines = [
        f"{i},{i},{check[0]},dog,dog_s_1,cat,5,3,0,-99999,dog_s_1.png,900,1000" for i in range(3)
    ]  # fmt: skip
    for number, votes in enumerate(VOTES):
        true = SHOWN[number]
        for chosen, count in zip(CLASSES, votes, strict=True):
            line = f"7,3,{check[1]},{true},x_s_1,{chosen},0,0,{int(chosen == true)},{number},x.png,800,900"
            lines += [line] * int(count)
    np.random.default_rng(0).shuffle(lines)
    path = folder / "cifar10h-raw.csv"
    path.write_text("\n".join([RAW, *lines]) + "\n")
    return path


def zipped(folder):
    path = folder / "cifar10h-raw.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(raw_csv(folder), "cifar10h-raw.csv")
    return path


def probabilities(folder):
    return counts_npy(folder, VOTES / VOTES.sum(1, keepdims=True), "cifar10h-probs.npy")


@pytest.mark.parametrize("make", [counts_csv, counts_npy, probabilities, raw_csv, zipped])
def test_cifar10h_says_the_same_in_each_of_its_forms(make, tmp_path, capsys):
    path = make(tmp_path)
    found = read_human(path)
    said = "read as 'cifar10h', recognised by its content (`kind` overrides this)"
    assert capsys.readouterr().out == f"{path.name}: 3 images, {said}\n"
    assert [name.rsplit(".", 1)[0] for name in found.ids] == NAMES
    assert found.frequencies.tolist() == pytest.approx(HSF, abs=1e-15)
    assert found.classes == tuple(SHOWN)
    if make is probabilities:
        assert found.annotators is None
    else:
        assert found.annotators.tolist() == [51, 51, 50]


def test_attention_checks_may_be_flagged_in_words(tmp_path):
    assert read_human(raw_csv(tmp_path, ("True", "False"))).annotators.tolist() == [51, 51, 50]


def test_the_order_may_lie_in_cifar10s_folder(tmp_path, monkeypatch):
    (tmp_path / "cifar10").mkdir()
    path = counts_npy(tmp_path)
    (tmp_path / "test_order.txt").rename(tmp_path / "cifar10" / "test_order.txt")
    monkeypatch.setenv("UDA_DATA", str(tmp_path))
    assert read_human(path).frequencies.tolist() == pytest.approx(HSF)
    (tmp_path / "cifar10" / "test_order.txt").unlink()
    with pytest.raises(UserError, match=r"does not have the images' classes, .*fetch cifar10.* writes this file"):
        read_human(path)


def test_imagenetv2_nested_and_vote_by_vote(tmp_path):
    """Two of ten picked the first image as a tench, all ten as a shark; votes of the second: 1, 1, 0."""
    nested = tmp_path / "frequencies.json"
    nested.write_text(json.dumps({"ILSVRC2012_val_1.JPEG": {"n01440764": 0.2, "n01484850": 1}, "b2": {"n01440764": 0}}))
    found = read_human(nested, log=lambda line: None)
    assert dict(zip(found.ids, found.frequencies.tolist(), strict=True)) == {
        "n01440764/ILSVRC2012_val_1.JPEG": 0.2,
        "n01484850/ILSVRC2012_val_1.JPEG": 1.0,
        "n01440764/b2": 0.0,
    }
    assert found.classes == ("n01440764", "n01484850", "n01440764") and found.annotators is None
    votes = tmp_path / "votes.csv"
    votes.write_text("id,wnid,selected,worker\nb2,n01440764,1,w\nb2,n01440764,True,v\na1,n0,0,w\nb2,n01440764,0.0,u\n")
    found = read_human(votes, log=lambda line: None)
    assert found.ids == ("n01440764/b2", "n0/a1")
    assert found.frequencies.tolist() == [2 / 3, 0] and found.annotators.tolist() == [3, 1]


def test_a_csv_of_ones_own_may_have_human_in_its_head_and_come_from_a_spreadsheet(tmp_path):
    """Spreadsheets write a byte order mark; one column of `human_` does not make votes of CIFAR-10H."""
    path = tmp_path / "own.csv"
    path.write_text("image,human_frequency\na/1.jpg,0.5\n", encoding="utf-8-sig")
    assert guess(path) == "csv"
    assert read_human(path, id_column="image", log=lambda line: None).ids == ("a/1.jpg",)


def test_shares_stay_on_the_edges_of_bins(tmp_path):
    """9 of 45 say bird. These shares' sum is not quite 1; divided by it .2 would be above .2, and in the next bin."""
    shares = np.array([[4, 5, 9, 3, 6, 1, 6, 6, 2, 3]] * 3) / 45
    assert (0.2 / shares.sum(1) > 0.2).all()
    (tmp_path / "test_order.txt").write_text("".join(f"test/bird/{i}.png\n" for i in range(3)))
    np.save(tmp_path / "cifar10h-probs.npy", shares)
    found = read_human(tmp_path / "cifar10h-probs.npy", log=lambda line: None)
    assert found.frequencies.tolist() == [0.2] * 3


def test_any_csv_by_place_and_by_name(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("picture,hsf,again\na/1.jpg,0.5,0.25\na/2.jpg,1,0\n")
    assert guess(path) == "csv"
    found = read_human(path, log=lambda line: None)
    assert found.ids == ("a/1.jpg", "a/2.jpg") and found.frequencies.tolist() == [0.5, 1]
    assert read_human(path, "csv", "picture", "again").frequencies.tolist() == [0.25, 0]
    with pytest.raises(UserError, match="no column 'hfs', did you mean 'hsf'"):
        read_human(path, frequency_column="hfs")
    with pytest.raises(UserError, match="are for `kind` csv, not for 'cifar10h'"):
        read_human(path, "cifar10h", "picture")
    assert sorted(HUMAN) == ["cifar10h", "csv", "imagenetv2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "id,hsf\nx,95\ny,80\n",
            "must have shares in 0..1, but has 95 in row 2 (2 of 2 are outside",
        ),
        ("a.csv", "id,hsf\nx,1\ny,-0.1\n", "-0.1 in row 3 (1 of 2 are outside"),
        ("a.csv", "id,hsf\nx,nan\n", "nan in row 2"),
        ("a.csv", "id,hsf\nx,1\nx,1\n", "the image x is named twice"),
        ("a.csv", "id,hsf\nx,often\n", "column 'hsf' must have numbers, but has 'often' in row 2"),
        ("a.csv", "id,label,hsf\nx,cat,1\n", "'cat' in row 2; name the right columns in `id_column` and"),
        ("a.csv", "id,hsf\nx,1\ny,\n", "column 'hsf' must have numbers, but has '' in row 3"),
        ("a.csv", "id;hsf\nx;1\n", "columns are separated by ';'; use commas"),
        ("a.csv", "id,hsf\nx\n", "row 2 has 1 cells, but the head has 2"),
        ("a.csv", "id,hsf\n", "no rows"),
        ("a.csv", "id\nx\n", "has only the column 'id'; it needs an id and a frequency"),
        ("a.csv", "image,true_class,human_cat\nx,cow,3\n", "there are no votes for the class 'cow'"),
        ("a.csv", "image,true_class,human_cat\nx,cat,0\n", "votes of row 1 are impossible: [0.0]"),
        ("a.csv", "image,human_cat,human_dog\nx,0,1\n", "not a file of CIFAR-10H"),
        ("a.csv", f"{RAW}\n1,1,0,cat,x,cat,3,3,1,4,x.png,1,1\n", "there must be votes for all images from number 0"),
        ("a.csv", f"{RAW}\n1,1,0,cat,x,cat,3,3,1,first,x.png,1,1\n", "has 'first'; it must have image numbers"),
        ("a.csv", "id,wnid,selected\nx,n0,maybe\n", "'selected' has 'maybe'"),
        ("a.json", "{", "must have the form {image: {WordNet id: frequency}}"),
        ("a.json", '{"x": 0.5}', "must have the form {image: {WordNet id: frequency}}"),
        ("a.json", "{}", "no images"),
        ("a.npy", "no array", "not an array of numbers"),
        ("a.zip", "no archive", "not a table"),
    ],
)
def test_a_damaged_file_is_named(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_human(path, log=lambda line: None)


def test_arrays_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match=r"an array of CIFAR-10H has shape \(10000, 10\), got \(3, 9\)"):
        read_human(counts_npy(tmp_path, VOTES[:, :9]))
    with pytest.raises(UserError, match=r"has 3 lines, .* 2 rows"):
        read_human(counts_npy(tmp_path, VOTES[:2]))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(UserError, match="not an array of numbers"):
        read_human(tmp_path / "objects.npy")
    with pytest.raises(UserError, match="no such file"):
        read_human(tmp_path / "none.csv")
    with pytest.raises(UserError, match="unknown format of human frequencies 'cifar', did you mean 'cifar10h'"):
        read_human(counts_csv(tmp_path), "cifar")


def joined(first, second, allow_missing=False):
    pairs = join(first, second, ("scores", "people"), allow_missing)
    return [(first[i], second[j]) for i, j in zip(pairs.first, pairs.second, strict=True)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["test/cat/0000.jpg", "test/dog/0000.jpg"], ["test/dog/0000.png", "test/cat/0000.PNG"]),
        (["cat/0000", "dog/0000"], ["test/dog/0000.jpg", "test/cat/0000.jpg"]),
        (["/data/a/cat/0000.jpg", "/data/a/dog/0000.jpg"], ["/else/dog/0000.jpg", "/else/cat/0000.jpg"]),
        (["a\\cat\\0.jpg", "a\\dog\\0.jpg"], ["dog/0.jpeg", "cat/0.jpeg"]),
        (["val/x.1", "val/x.2"], ["x.2.JPEG", "x.1.JPEG"]),
    ],
)
def test_images_are_known_by_the_ends_of_their_paths(first, second):
    assert joined(first, second) == [(first[0], second[1]), (first[1], second[0])]


def test_more_parts_decide_where_fewer_are_not_enough():
    """By two parts train/cat/0 and test/cat/0 are one; by one part dog/0 is neither."""
    first, second = ["d/test/cat/0", "d/train/cat/0"], ["train/cat/0.jpg", "test/cat/0.jpg"]
    assert joined(first, second) == [(first[0], second[1]), (first[1], second[0])]
    with pytest.raises(UserError, match="ids match several images by their last 2 parts:\n  cat/0\n"):
        joined(["x/cat/0", "x/dog/1"], ["train/cat/0", "test/cat/0", "test/dog/1"])


def test_folders_below_classes_are_ids_of_several_lengths():
    ids = ["dog/1.jpg", "dog/2.jpg", "dog/more/3.jpg"]
    assert joined(ids, ids[::-1]) == [(name, name) for name in ids]
    longer = [f"/data/test/{name}" for name in ids]
    assert joined(ids, longer) == list(zip(ids, longer, strict=True))
    assert joined(longer, ids) == list(zip(longer, ids, strict=True))
    assert joined(ids[:1] + ids[2:], ids, allow_missing=True) == [(ids[0], ids[0]), (ids[2], ids[2])]
    with pytest.raises(UserError, match="ids match several images by their last 3 parts:\n  dog/1\n"):
        joined(["x/more/3", "dog/1"], ["x/more/3", "a/dog/1", "b/dog/1"])


def test_endings_tell_images_apart_where_nothing_else_does():
    ids = ["dog/1.jpg", "dog/1.png"]
    assert joined(ids, ids[::-1]) == [(name, name) for name in ids]
    assert joined(ids, [f"test/{name}" for name in ids]) == [(name, f"test/{name}") for name in ids]
    with pytest.raises(UserError, match="ids match several images by their last 2 parts:\n  dog/1\n"):
        joined(ids, ["dog/1.jpg", "dog/1.jpeg"])


def test_images_of_one_side_alone():
    first, second = [f"cat/{i}.jpg" for i in range(9)], [f"test/cat/{i}.jpg" for i in range(2, 9)] + ["test/dog/0.jpg"]
    message = (
        "2 of 9 images of scores are not in people: cat/0.jpg, cat/1.jpg\n"
        "1 of 8 images of people are not in scores: test/dog/0.jpg\n"
        "ids look like 'cat/0.jpg' in scores and like 'test/cat/2.jpg' in people; `allow_missing` uses only images"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        joined(first, second)
    assert joined(first, second, allow_missing=True) == [(f"cat/{i}.jpg", f"test/cat/{i}.jpg") for i in range(2, 9)]
    message = "7 of 7 images of scores are not in people: a0, a1, a2, a3, a4, ..."
    for allow_missing in (False, True):
        with pytest.raises(UserError, match=re.escape(message) + r"(.|\n)*no image is in both"):
            joined([f"a{i}" for i in range(7)], ["b"], allow_missing)


def test_ids_that_match_other_images_are_found_out_by_the_class():
    """Numbers alone match across classes; where both sides know the class, that is an error."""
    names = [f"{i:04d}" for i in range(12)]
    human = HumanFrequencies(tuple(f"cat/{n}" for n in names), np.linspace(0, 1, 12), ("cat",) * 12)
    values = {"avh": np.arange(12.0), "confidence": np.arange(12.0)}

    def table(labels):
        return ScoreTable(tuple(f"ship/{n}" for n in names), labels, labels, values)

    with pytest.raises(UserError, match=r"2 of 12 images have another class .* cat/0010 has 'ship' and 'cat'"):
        join_human("model", table(("cat",) * 10 + ("ship",) * 2), human, None, "confidence")
    numbered = join_human("model", table(("8",) * 12), human, None, "confidence")
    assert numbered.human.ids == human.ids and list(numbered.scores) == ["avh", "confidence"]


def test_imagenetv2s_numbered_folders_are_wordnet_ids_where_people_were_shown_those():
    """Class 7 of ImageNet is n01514668 (cock), class 2 n01484850 (great white shark), in the folders of ImageNetV2."""
    files = [f"{i:02d}.jpeg" for i in range(12)]
    asked = tuple(f"{'n01514668' if i < 6 else 'n01484850'}/{i:02d}" for i in range(12))
    human = HumanFrequencies(asked, np.linspace(0, 1, 12), tuple(name.split("/")[0] for name in asked))
    folders = ["7"] * 6 + ["2"] * 6
    values = {"avh": np.arange(12.0), "confidence": np.arange(12.0)}
    table = ScoreTable(
        tuple(f"v2/{c}/{n}" for c, n in zip(folders, files, strict=True)), tuple(folders), tuple(folders), values
    )
    found = join_human("model", table, human, None, "confidence")
    assert found.human.ids == asked and found.scores["avh"].tolist() == list(range(12))
    swapped = ScoreTable(
        tuple(f"v2/{c}/{n}" for c, n in zip(folders[::-1], files, strict=True)),
        tuple(folders[::-1]),
        tuple(folders),
        values,
    )
    with pytest.raises(UserError, match=r"12 of 12 images have another class .* 'n01484850' and 'n01514668'"):
        join_human("model", swapped, human, None, "confidence")
