"""Feature banks: files of `uda bank` and of a user's own arrays, as domains of a run."""

import json
import os

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch

from tests.data.banks import CLASSES, blob_bank, blobs, write_npz
from uda.core.errors import UserError
from uda.data.banks import FORMAT, KEY, find_domain, header, read_domain, read_domains
from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS
from uda.data.domains import load_domains
from uda.data.features import features_of
from uda.data.inventory import take_stock_of_bank
from uda.data.settings import DataSettings


def settings(folder, **changes):
    return DataSettings.model_validate({"source": "drawn", "target": "photos", "features": str(folder), **changes})


def load(folder, **changes):
    """The domains, and the lines of the log."""
    lines = []
    return load_domains(settings(folder, **changes), 0, lines.append), lines


def write_bank_file(path, features, ids, labels, *, classes=CLASSES, views=None, made_by=None, **changes):
    """A file as `uda bank` writes it, from the format's words alone."""
    names = "\0".join(ids).encode("utf-8", "surrogateescape")
    told = {"format": FORMAT, "domain": path.stem, "classes": list(classes), "checksum": "0" * 64}
    told |= {"images": "", "labels": "", "made_by": made_by or {}, **changes}
    shapes = {"features": ("F32", features.shape), "labels": ("I64", labels.shape)}
    shapes |= {} if views is None else {"views": ("F32", views.shape)}
    content, places = header(told, shapes | {"ids": ("U8", (len(names),))})
    arrays = [features, labels, *([] if views is None else [views]), np.frombuffer(names, np.uint8)]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content + b"".join(array.tobytes() for array in arrays))
    assert next(iter(places.values())) == len(content)


# Files of `uda bank`


def test_a_file_of_uda_bank_is_read_as_it_was_written(tmp_path):
    """Also by safetensors itself."""
    features, views = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32), np.ones((3, 2, 5), np.float32)
    ids = ["a/ä b.jpg", "a/\n.png", "c/'.jpg"]
    labels = np.array([1, NO_LABEL, 3])
    write_bank_file(tmp_path / "art.safetensors", features[0], ids, labels, views=views, made_by={"backbone": "x"})
    found = find_domain(tmp_path, "art")
    assert found.ids == ids
    assert torch.equal(found.features, torch.from_numpy(features[0]))
    assert torch.equal(found.views, torch.from_numpy(views))
    assert found.labels.tolist() == [1, -1, 3] and found.classes == CLASSES and found.made_by == {"backbone": "x"}
    assert found.width == 5

    from safetensors.numpy import load_file

    assert np.array_equal(load_file(tmp_path / "art.safetensors")["features"], features[0])


def mapped(path):
    """Bytes of a file that this process maps, and how many of them are copies in its own memory."""
    size = copied = 0
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            first, *rest = line.split()
            if not first.endswith(":"):
                counts = rest[-1:] == [str(path)]
            elif counts and first == "Size:":
                size += 1024 * int(rest[0])
            elif counts and first == "Anonymous:":
                copied += 1024 * int(rest[0])
    return size, copied


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux")
@pytest.mark.parametrize("ending", ["safetensors", "npy"])
def test_features_are_mapped_and_not_copied(tmp_path, ending):
    features, ids = np.ones((1000, 1024), np.float32), [f"i{i}" for i in range(1000)]
    path = tmp_path / f"art.{ending}"
    if ending == "npy":
        np.save(path, features)
        path.with_suffix(".txt").write_text("\n".join(ids))
    else:
        write_bank_file(path, features, ids, np.zeros(1000, np.int64))
    domain = read_domain(path)
    size, copied = mapped(path)
    assert size >= features.nbytes and copied < 100_000
    assert domain.array().take(np.array([3, 5])).together(np.array([1])).shape == (1, 1, 1024)


def test_a_file_is_read_once_until_it_changes(tmp_path):
    folder = write_npz(tmp_path, art=blobs())
    first = find_domain(folder, "art")
    assert find_domain(folder, "art") is first
    write_npz(tmp_path, art=blobs(seed=5))
    assert find_domain(folder, "art").checksum != first.checksum


# Arrays of a user's own


def write_npy(folder, arrays, lines=None):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "art.npy", arrays["features"])
    if lines is None:
        labels = arrays.get("labels")
        lines = [f"{name}\t{labels[i]}" if labels is not None else name for i, name in enumerate(arrays["ids"])]
    (folder / "art.txt").write_text("\n".join(map(str, lines)), encoding="utf-8")


def write_pandas(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"path": arrays["ids"], "features": list(arrays["features"])}
    columns |= {"label": arrays["labels"]} if "labels" in arrays else {}
    pandas.DataFrame(columns).to_parquet(folder / "art.parquet")


def write_pyarrow(folder, arrays):
    """With lists of a fixed size, in two row groups, and labels as categories."""
    folder.mkdir(parents=True, exist_ok=True)
    width = arrays["features"].shape[1]
    features = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(arrays["features"].reshape(-1)), width)
    columns = {"id": arrays["ids"].tolist(), "features": features}
    if "labels" in arrays:
        columns["label"] = pyarrow.array(arrays["labels"].tolist()).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "art.parquet", row_group_size=20)


WRITERS = {
    "npz": lambda folder, arrays: write_npz(folder, art=arrays),
    "npy": write_npy,
    "pandas": write_pandas,
    "pyarrow": write_pyarrow,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("labels", ["names", "numbers", "none"])
def test_all_formats_with_names_numbers_and_without_labels(tmp_path, writer, labels):
    arrays = blobs()
    if labels == "numbers":
        arrays["labels"] = np.repeat(np.arange(4), 8)
    elif labels == "none":
        del arrays["labels"]
    WRITERS[writer](tmp_path, arrays)
    found = find_domain(tmp_path, "art")
    assert np.array_equal(found.features.numpy(), arrays["features"]) and found.ids == arrays["ids"].tolist()
    assert found.labels.tolist() == ([-1] * 32 if labels == "none" else np.repeat(np.arange(4), 8).tolist())
    assert found.classes == (CLASSES if labels == "names" else ()) and not found.made_by


@pytest.mark.parametrize("writer", ["npz", "npy", "pandas", "pyarrow"])
@pytest.mark.parametrize("named", [True, False])
def test_some_rows_may_be_without_a_label(tmp_path, writer, named):
    arrays = blobs()
    if named:
        arrays["labels"] = np.array(["bee", *[""] * 30, "ant"])
    else:
        arrays["labels"] = np.array([1, *[-1] * 30, 0])
    if writer in ("pandas", "pyarrow"):  # there the label is null
        odd = ("", -1)
        column = [None if label in odd else label for label in arrays["labels"].tolist()]
        table = {"id": arrays["ids"].tolist(), "features": list(arrays["features"]), "label": column}
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "art.parquet")
    else:
        WRITERS[writer](tmp_path, arrays)
    assert find_domain(tmp_path, "art").labels.tolist() == [1, *[-1] * 30, 0]


def test_arrays_of_other_types_are_taken(tmp_path):
    """float16 and float64, ids as numbers or bytes, and class names in either Unicode form."""
    arrays = {"features": np.ones((2, 3), np.float16), "ids": np.array([7, 8]), "labels": np.array(["é", "e\u0301"])}
    found = find_domain(write_npz(tmp_path, art=arrays), "art")
    assert found.features.dtype == torch.float32 and found.ids == ["7", "8"] and found.labels.tolist() == [0, 0]
    arrays = {"features": np.ones((2, 3)), "ids": np.array([b"a", "ä".encode()])}
    assert find_domain(write_npz(tmp_path / "b", art=arrays), "art").ids == ["a", "ä"]


def test_a_npz_may_have_views(tmp_path):
    views = np.random.default_rng(0).normal(size=(32, 3, 12))
    found = find_domain(write_npz(tmp_path, art=blobs() | {"views": views}), "art")
    assert np.array_equal(found.views.numpy(), views.astype(np.float32))
    assert found.checksum != find_domain(write_npz(tmp_path / "without", art=blobs()), "art").checksum


def change(**changes):
    """Write a file of blobs with other arrays; None leaves one out."""
    arrays = {name: values for name, values in (blobs() | changes).items() if values is not None}
    return lambda folder: write_npz(folder, art=arrays)


def without(name):
    arrays = blobs()
    del arrays[name]
    return lambda folder: write_npz(folder, art=arrays)


def with_nan(folder):
    arrays = blobs()
    arrays["features"][17, 3] = np.nan
    write_npz(folder, art=arrays)


def lines_of(*lines):
    return lambda folder: write_npy(folder, {"features": np.ones((2, 3), np.float32)}, lines)


def parquet(**columns):
    def write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "art.parquet")

    return write


def raw(name, content):
    def write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def safetensors(**arrays):
    from safetensors.numpy import save

    return raw("art.safetensors", save(arrays))


def newer(folder):
    write_bank_file(folder / "art.safetensors", np.ones((1, 2), np.float32), ["a"], np.zeros(1, np.int64), format=99)


def nan_in_a_view(folder):
    views = np.ones((2, 2, 3), np.float32)
    views[1, 1, 2] = np.inf
    features = np.ones((2, 3), np.float32)
    write_bank_file(folder / "art.safetensors", features, ["a", "b"], np.zeros(2, np.int64), views=views)


def cut_short(folder):
    newer(folder)
    path = folder / "art.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def two_files(folder):
    write_npz(folder, art=blobs())
    write_npy(folder, blobs())


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (with_nan, r"art\.npz: the features of 'cat/17\.jpg' are not finite \(NaN or infinite\); make them again"),
        (nan_in_a_view, "the features of 'b' are not finite"),
        (without("ids"), r"no array 'ids' \(it has features, labels\); write it too, it needs features and ids$"),
        (change(feature=ONES, features=None), r"no array 'features' .*; name it so in place of 'feature'$"),
        (change(label=np.arange(32), labels=None), r"no array 'labels' .*; name it so in place of 'label'$"),
        (without("features"), r"art\.npz: it has no array 'features' \(it has ids, labels\)"),
        (change(ids=np.array(["a"] * 32)), "the id 'a' is given twice"),
        (change(ids=np.array(["a", ""] * 16)), "row 1 has no id; each row needs one"),
        (change(ids=np.array([b"a", b"\xff"] * 16)), r"an id is not text in UTF-8, or holds a zero byte; rename it: "),
        (change(ids=np.array(["a\0b", "c"] * 16)), "an id is not text in UTF-8, or holds a zero byte"),
        (change(ids=np.arange(31)), "32 rows of features, but 31 ids; each row needs one"),
        (change(ids=np.arange(32.0)), r"ids must be names or whole numbers, but one is 0\.0"),
        (change(ids=np.array([object()] * 32)), r"are Python objects; write them as np\.array\(names, str\)"),
        (change(labels=np.arange(30)), "32 rows of features, but 30 labels"),
        (change(labels=np.full(32, -2)), "label -2; labels are class numbers from 0, or -1 for no label"),
        (change(labels=np.ones(32)), "labels must be class names or whole numbers, but they are float64"),
        (change(features=np.ones(32)), r"features must be \(images, width\), but they have the shape \(32,\)"),
        (change(features=np.ones(())), r"but they have the shape \(1,\)"),
        (change(features=np.ones((32, 2, 2))), r"but they have the shape \(32, 2, 2\)"),
        (change(features=np.ones((32, 4), int)), "features must be floating numbers, but they are int64"),
        (change(features=np.ones((0, 4)), ids=np.array([], str)), r"but they have the shape \(0, 4\)"),
        (change(views=np.ones((32, 5, 11))), r"views must be \(images, views, width\) of the features \(32, 12\), but"),
        (change(views=np.ones((32, 12))), r"but they have the shape \(32, 12\)"),
        (lines_of("a\tx\ty", "b"), r"art\.txt: each line needs an id, or an id, a tab and a label"),
        (lines_of("a"), "2 rows of features, but 1 ids"),
        (lambda folder: np.save(folder / "art.npy", ONES), r"art\.npy: no ids: art\.txt beside it must have a line"),
        (parquet(features=[[1.0]], label=["a"]), r"it has no column 'id' \(it has features, label\)"),
        (parquet(id=["a"], x=[1]), r"it has no column 'features' \(it has id, x\)"),
        (parquet(ids=["a"], features=[[1.0]]), r"no column 'id' .*; name it so in place of 'ids'$"),
        (parquet(id=["a", "b"], features=[[1.0], [1.0, 2.0]]), "rows of features have different lengths, 1 to 2"),
        (parquet(id=["a", "b"], features=[[1.0], None]), "1 rows have no features"),
        (parquet(id=["a", "b"], features=[[1.0], [None]]), "the features of 'b' are not finite"),
        (parquet(id=["a", None], features=[[1.0], [1.0]]), "row 1 has no id"),
        (
            parquet(id=["a"], features=["text"]),
            "must be a list of numbers, but it is of type string",
        ),
        (
            raw("art.npz", b"nothing"),
            r"art\.npz: cannot be read as features; it is damaged, or no \.npz file: write it ",
        ),
        (change(features=np.array([object()] * 32)), "features are Python objects"),
        (raw("art.npy", b"nothing"), r"art\.npy: no ids"),
        (raw("art.parquet", b"nothing"), r"art\.parquet: cannot be read as features"),
        (raw("art.safetensors", b"nothing"), r"art\.safetensors: cannot be read as features"),
        (cut_short, r"art\.safetensors: cannot be read as features"),
        (safetensors(features=ONES), r"not written by `uda bank`; give your own features as \.npz, \.npy, \.parquet"),
        (newer, "written by a newer version of uda; update uda, or make the bank again"),
        (raw("other.npz", b""), r"data\.features: .* has no domain 'art' \(it has other\)"),
        (raw("arts.npz", b""), r"has no domain 'art', did you mean 'arts'\? \(it has arts\)"),
        (raw("art.jpg", b""), r"holds no features; it needs a file for each domain, with one of the endings "),
        (two_files, r"has two files of the domain 'art', art\.npy and art\.npz; remove one"),
    ],
)
def test_what_cannot_be_used_is_one_error_that_names_the_file(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        find_domain(tmp_path, "art")
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"data\.features: no such folder: .*nowhere; make it with `uda bank"):
        find_domain(tmp_path / "nowhere", "art")


# Domains of a run


def test_a_run_gets_features_labels_and_classes(tmp_path):
    domains, lines = load(blob_bank(tmp_path))
    assert domains.classes == CLASSES and lines == []
    assert domains.source.labels.tolist() == np.repeat(np.arange(4), 8).tolist()
    assert domains.target_labels.reveal().tolist() == domains.source.labels.tolist()
    assert [array.width for array in features_of(domains.source.images)] == [12]
    assert domains.source.images.in_memory and not domains.source.images.visible


def test_a_space_in_place_of_a_tab_is_told(tmp_path):
    """The labels are ids then. Ids that hold spaces, and have other endings each, are as they should be."""
    features = np.ones((4, 3), np.float32)
    rows = ["0.jpg cat", "1.jpg dog", "2.jpg cat", "3.jpg dog"]
    write_npy(tmp_path, {"features": features}, rows)
    (note,) = find_domain(tmp_path, "art").listing(None).notes
    assert f"{tmp_path}/art.txt: no line has a tab" in note and "such as '0.jpg cat'; if the last word" in note
    lines = []
    write_npz(tmp_path, photos=blobs())
    with pytest.raises(UserError, match=r"0\.jpg cat has no label, but every image needs one; only data"):
        load_domains(DataSettings(source="art", target="photos", features=str(tmp_path)), 0, lines.append)
    assert lines == [note]
    for right in (["a b", "c d", "e f", "g h"], ["a b\tcat", "c b\tcat", "d b\tcat", "e b\tcat"]):
        write_npy(tmp_path, {"features": features}, right)
        assert find_domain(tmp_path, "art").notes == ()


def test_several_sources_and_targets(tmp_path):
    four = {name: blobs(seed=number) for number, name in enumerate("abcd")}
    domains, _ = load(write_npz(tmp_path, **four), source=["a", "b"], target=["c", "d"])
    assert len(domains.source.images) == 64 and domains.source.domain.tolist() == [0] * 32 + [1] * 32
    rows = domains.target.images.together(np.array([0, 40]))[:, 0].numpy()
    assert np.array_equal(rows, [four["c"]["features"][0], four["d"]["features"][8]])
    assert domains.source.images.ids[40] == "b/bee/8.jpg"  # both have the same ids


def test_domains_may_be_named_by_paths(tmp_path):
    """The own folders of a config, whose last parts name the files of its bank."""
    assert load(blob_bank(tmp_path), source="/data/drawn", target="/data/photos.txt")[0].classes == CLASSES


def test_labels_of_the_target_are_not_read_if_the_config_says_so(tmp_path):
    folder = write_npz(tmp_path, drawn=blobs(), photos=blobs(classes=("w", "x", "y", "z")))
    domains, _ = load(folder, target_labels="none")
    assert domains.target_labels is None and domains.classes == CLASSES


def test_a_target_with_some_labels_may_lack_classes(tmp_path):
    photos = blobs(seed=1)
    photos["labels"][5:] = ""
    domains, _ = load(write_npz(tmp_path, drawn=blobs(), photos=photos))
    assert domains.target_labels.count == 5


@pytest.mark.parametrize(
    ("label_sets", "classes", "labels"),
    [
        ("partial", ("bee", "dog"), [1, 3]),
        ("open", (*CLASSES, "zebra"), [0, 1, 2, 3, UNKNOWN_CLASS]),
        ("universal", ("bee", "zebra"), [1, UNKNOWN_CLASS]),
    ],
)
def test_label_sets(tmp_path, label_sets, classes, labels):
    folder = write_npz(tmp_path, drawn=blobs(), photos=blobs(classes=classes))
    domains, lines = load(folder, label_sets=label_sets)
    assert domains.target_labels.reveal().tolist() == np.repeat(labels, 8).tolist()
    unknown = "photos.npz: 8 images are of classes that the source lacks and count as unknown: zebra (8)"
    assert [line.rpartition("/")[2] for line in lines] == ([unknown] if UNKNOWN_CLASS in labels else [])
    message = f"all domains need the same classes; .*or set data.label_sets={label_sets}"
    with pytest.raises(UserError, match=message):
        load(folder)


def test_the_order_of_the_classes_is_that_of_the_source(tmp_path):
    """Files of `uda bank` may have another order each: their numbers are read by names."""
    features, ids = np.ones((4, 3), np.float32), list("abcd")
    write_bank_file(tmp_path / "drawn.safetensors", features, ids, np.arange(4))
    write_bank_file(tmp_path / "photos.safetensors", features, ids, np.arange(4), classes=CLASSES[::-1])
    domains, _ = load(tmp_path)
    assert domains.classes == CLASSES and domains.target_labels.reveal().tolist() == [3, 2, 1, 0]
    ordered, _ = load(tmp_path, classes=["dog", "ant", "bee", "cat"])
    assert ordered.source.labels.tolist() == [1, 2, 3, 0]


def numbered(count=4, **changes):
    return blobs() | {"labels": np.repeat(np.arange(count), 32 // count)} | changes


def test_numbers_mean_the_names_that_the_config_gives(tmp_path):
    folder = write_npz(tmp_path, drawn=numbered(), photos=numbered())
    assert load(folder)[0].classes == ("0", "1", "2", "3")
    assert load(folder, classes=["x", "y", "z", "w"])[0].classes == ("x", "y", "z", "w")


def made(folder, **made_by):
    for name, told in made_by.items():
        features = np.ones((4, 3), np.float32)
        write_bank_file(folder / f"{name}.safetensors", features, list("abcd"), np.arange(4), made_by=told)
    return folder


OTHER = dict.fromkeys(("backbone", "digest", "transform"), "x")


@pytest.mark.parametrize(
    ("write", "changes", "message"),
    [
        (lambda f: write_npz(f, drawn=blobs(), photos=numbered()), {}, "its labels are numbers, but the source domain"),
        (lambda f: write_npz(f, drawn=numbered(), photos=blobs()), {}, "all domains need the same classes"),
        (lambda f: write_npz(f, drawn=numbered(), photos=numbered(8)), {}, r"label 7, but the source domain has 4"),
        (lambda f: write_npz(f, drawn=blobs(), photos=blobs(classes=("ant", "bee", "cat", "Dog"))), {},
         "'Dog' and 'dog' differ only by case"),
        (lambda f: write_npz(f, drawn=blobs(), photos=blobs(width=5)), {}, "different widths, 12 and 5; make one bank"),
        (lambda f: made(f, drawn=OTHER, photos=OTHER | {"backbone": "y", "digest": "z"}), {},
         "made with another backbone and digest; make one bank of both"),
        (lambda f: made(f, drawn=OTHER, photos=OTHER | {"transform": "y"}), {}, "made with another transform"),
        (lambda f: write_npz(f, drawn=blobs() | {"labels": np.array(["ant"] * 31 + [""])}, photos=blobs()), {},
         r"data\.source: drawn: dog/31\.jpg has no label"),
        (blob_bank, {"target": "other/drawn"},
         r"data\.source \(drawn\) and data\.target \(other/drawn\) are both .*drawn\.npz: the target's labels"),
        (blob_bank, {"source": ["drawn", "other/drawn"]}, r"drawn\.npz: they would count twice; name different"),
        (blob_bank, {"source": "photso"}, r"^data\.source: .* has no domain 'photso', did you mean 'photos'\? \(it"),
        (blob_bank, {"target_labelled": "x"}, r"data\.target_labelled: it needs images"),
        (blob_bank, {"dataset": "pacs", "source": "drawn"}, "pacs"),
        (blob_bank, {"classes": ["ant", "bee"]}, r"classes of .*drawn\.npz that are not in data\.classes: cat, dog"),
    ],
)  # fmt: skip
def test_domains_that_do_not_fit_together(tmp_path, write, changes, message):
    write(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path, **changes)
    assert "\n" not in str(raised.value)


def test_counts_of_a_bank(tmp_path):
    photos = blobs(seed=1)
    photos["labels"][30:] = ""
    counts = take_stock_of_bank(read_domains(write_npz(tmp_path, drawn=blobs(), photos=photos)))
    assert [(count.domain, count.label, count.found) for count in counts if count.domain == "photos"] == [
        ("photos", None, 32), ("photos", "ant", 8), ("photos", "bee", 8), ("photos", "cat", 8), ("photos", "dog", 6),
        ("photos", "no label", 2),
    ]  # fmt: skip
    assert all(count.right for count in counts)


def test_the_description_is_plain_json(tmp_path):
    write_bank_file(tmp_path / "art.safetensors", np.ones((1, 2), np.float32), ["a"], np.zeros(1, np.int64))
    content = (tmp_path / "art.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert json.loads(json.loads(content[8 : 8 + length])["__metadata__"][KEY])["domain"] == "art" and length % 8 == 0
