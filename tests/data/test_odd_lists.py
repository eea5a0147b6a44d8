"""Odd list files: every label comes out as its author meant it, or one clear line says what is wrong."""

import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_odd_trees import put
from tests.data.trees import make_folders
from uda.core.errors import UserError
from uda.data.cards import CARDS
from uda.data.domains import load_domains
from uda.data.settings import DataSettings

PETS = ["cat", "dog", "emu"]
COUNTED = ["class1", "class2", "class10"]
NUMBERS = ["1", "2", "3"]


def make(root, names, flat=False):
    """Folders `a` and `b` of these classes, two images each; gives back b's images and what they show."""
    truth = []
    for label, name in enumerate(names):
        for i in range(2):
            put(root / "a" / name / f"{i}.png")
            path = f"b/{label}_{i}.png" if flat else f"b/{name}/{i}.png"
            put(root / path)
            truth.append((path, name))
    return truth


def write(root, lines, name="b.txt"):
    (root / name).write_text("".join(f"{line}\n" for line in lines))


def load(root, source="a", target="b.txt", **changes):
    config = DataSettings(source=str(root / source), target=str(root / target), **changes)
    domains = load_domains(config, 0, lambda line: None)
    labels = domains.target_labels.reveal() if domains.target_labels else [-1] * len(domains.target.images.ids)
    return {
        path: None if label < 0 else domains.classes[label]
        for path, label in zip(domains.target.images.ids, labels, strict=True)
    }


def refused(root, message, **changes):
    with pytest.raises(UserError, match=message) as error:
        load(root, **changes)
    assert "\n" not in str(error.value)


def numbered(truth, order, start=0):
    return [f"{path} {order.index(name) + start}" for path, name in truth]


# Numbers: what they mean must be beyond doubt.


def test_numbers_whose_order_is_in_doubt_are_refused_with_both_orders(tmp_path):
    """`class10` stands before `class2` where names are sorted as text, behind it where people count."""
    truth = make(tmp_path, COUNTED, flat=True)
    write(tmp_path, numbered(truth, COUNTED))
    both = r"class1, class10, class2 \(as text\) or class1, class2, class10 \(as people count\): set data.classes"
    refused(tmp_path, f"order of the classes of the source domain is uncertain: {both}")
    for order in (COUNTED, sorted(COUNTED)):
        write(tmp_path, numbered(truth, order))
        assert load(tmp_path, classes=order) == dict(truth)
    (tmp_path / "names.txt").write_text("\ufeffclass1\r\nclass2\r\n\r\nclass10\r\n")
    write(tmp_path, numbered(truth, COUNTED))
    assert load(tmp_path, classes=str(tmp_path / "names.txt")) == dict(truth)


def test_capitals_put_an_order_in_doubt(tmp_path):
    names = ["Zebra", "ant", "bee"]
    write(tmp_path, numbered(make(tmp_path, names, flat=True), names))
    refused(tmp_path, r"is uncertain: Zebra, ant, bee \(as text\) or ant, bee, Zebra")


def test_numbers_are_accepted_where_every_program_sorts_alike(tmp_path):
    truth = make(tmp_path, PETS, flat=True)
    write(tmp_path, numbered(truth, PETS))
    assert load(tmp_path) == dict(truth)


def test_numbers_are_accepted_where_the_images_folders_agree_and_refused_where_they_do_not(tmp_path):
    truth = make(tmp_path, COUNTED)
    write(tmp_path, numbered(truth, sorted(COUNTED)))
    assert load(tmp_path) == dict(truth)
    write(tmp_path, numbered(truth, COUNTED))
    refused(
        tmp_path, "line 3: label 1 is 'class10' in the order .*, but the image's folder is 'class2': set data.classes"
    )


def test_two_lists_of_numbers_share_them(tmp_path):
    """Also where the class's names would be in doubt; but not where folders show that they do not."""
    truth = make(tmp_path, COUNTED)
    write(tmp_path, numbered(truth, COUNTED))
    own = [(f"a/{name}/{i}.png", name) for name in COUNTED for i in range(2)]
    write(tmp_path, numbered(own, COUNTED), "a.txt")
    assert load(tmp_path, "a.txt") == dict(truth)
    write(tmp_path, numbered(own, sorted(COUNTED)), "a.txt")
    refused(tmp_path, "but the image's folder is 'class2'", source="a.txt")


def test_numbers_counted_from_one_are_not_taken_for_others(tmp_path):
    truth = make(tmp_path, PETS, flat=True)
    write(tmp_path, numbered(truth, PETS, start=1))
    refused(tmp_path, "line 5: label 3, but the classes are numbered 0 to 2 .*; these seem to be counted from 1")
    write(tmp_path, [*numbered(truth[:4], PETS, start=1), f"{truth[4][0]} -1"])
    refused(tmp_path, "none is 0, so they may count from 0 or from 1")


def test_a_number_that_is_another_classs_name_is_refused(tmp_path):
    """1, 2 may be the classes of these names, or the second and third of them. No 0 and no 3: nobody can tell."""
    truth = make(tmp_path, NUMBERS, flat=True)
    unsure = [f"{truth[4][0]} -1", f"{truth[5][0]} -1"]
    write(tmp_path, [*(f"{path} {name}" for path, name in truth[:4]), *unsure])
    refused(
        tmp_path, "label 1 may mean two classes: there is one named '1', and class number 1, counted from 0, is '2'"
    )
    refused(tmp_path, "label 1 may mean two classes.*give the classes names that are not numbers", classes=NUMBERS)
    write(tmp_path, [f"{path} {name}" for path, name in truth])
    assert load(tmp_path) == dict(truth), "with 3 they are names"
    write(tmp_path, numbered(truth, NUMBERS))
    refused(tmp_path, "may mean two classes.*set data.classes")
    assert load(tmp_path, classes=NUMBERS) == dict(truth), "0 is not a name, and the order is told"


def test_names_that_are_their_own_numbers_are_no_doubt(tmp_path):
    names = [str(number) for number in range(10)]
    truth = make(tmp_path, names, flat=True)
    write(tmp_path, [f"{path} {name}" for path, name in truth])
    assert load(tmp_path) == dict(truth)


def test_names_that_are_one_number_are_told_apart_or_refused(tmp_path):
    truth = make(tmp_path, ["01", "1", "2"], flat=True)
    write(tmp_path, [f"{path} {name}" for path, name in truth])
    refused(tmp_path, "label [12] may mean two classes")


def test_lists_of_numbers_without_names(tmp_path):
    """Where the images' folders do not tell the classes apart, the numbers are the names. Folders tell nothing then."""
    truth = make(tmp_path, ["0", "1"])
    mixed = [f"{place}/{k}/{i}.png {i}" for k in range(2) for i in range(2) for place in "ab"]
    write(tmp_path, [line for line in mixed if line[0] == "a"], "a.txt")
    write(tmp_path, [line for line in mixed if line[0] == "b"])
    assert load(tmp_path, "a.txt") == {path: path[-5] for path, _ in truth}
    for name in ("cat", "dog"):
        put(tmp_path / "pets" / name / "0.png")
    refused(tmp_path, "classes of the source domain that are not in .*pets: 0, 1;", source="a.txt", target="pets")
    assert set(load(tmp_path, "a.txt", "pets", target_labels="none").values()) == {None}


def test_eleven_folders_of_numbers_need_an_order(tmp_path):
    names = [str(number) for number in range(11)]
    truth = make(tmp_path, names, flat=True)
    write(tmp_path, [f"{path} {name}" for path, name in truth])
    refused(tmp_path, "label 2 may mean two classes: there is one named '2', and class number 2, .* is '10'")
    assert load(tmp_path, classes=names) == dict(truth)


def test_data_classes_orders_folders_and_must_name_them(tmp_path):
    truth = make(tmp_path, PETS)
    order = ["dog", "emu", "cat"]
    config = DataSettings(source=str(tmp_path / "a"), target=str(tmp_path / "b"), classes=order)
    domains = load_domains(config, 0, print)
    assert domains.classes == tuple(order) and domains.source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert domains.source.images.ids[0] == "dog/0.png"
    write(tmp_path, [f"{path} {name}" for path, name in truth])
    assert load(tmp_path, classes=order) == dict(truth)
    refused(tmp_path, "classes of data.classes that are not in .*a: cow; .*: emu", classes=["cat", "dog", "cow"])
    refused(tmp_path, "data.classes: cat is given twice", classes=["cat", "dog", "cat"])
    refused(tmp_path, "data.classes: at least two names are needed", classes=["cat"])
    refused(tmp_path, "data.classes: no such file: cat; give names", classes="cat")
    make_folders(tmp_path / "PACS" / "photo", CARDS["pacs"].classes, per_class=1)
    pacs = DataSettings(dataset="pacs", root=str(tmp_path / "PACS"), source="photo", target="sketch", classes=order)
    with pytest.raises(
        UserError, match=r"data\.classes: the card 'pacs' already names its classes; remove data.classes"
    ):
        load_domains(pacs, 0, print)


# Dialects


@pytest.fixture
def pets(tmp_path):
    return tmp_path, make(tmp_path, PETS)


@pytest.mark.parametrize(
    "line",
    [
        "{path}\t{name}",
        '"{path}" {name}',
        "'{path}' '{name}'",
        '{path} "{name}"',
        "  {path}   {name}  ",
        "./{path} {number}",
        "{path} {name}\r",
        "{root}/{path} {name}",
    ],
)
def test_lines_that_can_be_read_in_one_way_only(pets, line):
    root, truth = pets
    write(root, [line.format(path=path, name=name, number=PETS.index(name), root=root) for path, name in truth])
    assert load(root) == dict(truth)


DIALECTS = {
    "backslashes": (
        lambda path, k: f"{path} {k}".replace("/", "\\"),
        "line 1: .* has backslashes; write / in their place",
    ),
    "commas": (lambda path, k: f"{path},{k}", "line 1: .* has ',' after the path; a line is `path label`"),
    "CSV in quotes": (lambda path, k: f'"{path}","{k}"', "line 1: .* has ',' after the path"),
    "semicolons": (lambda path, k: f"{path}; {k}", "has ';' after the path"),
    "a comma before the label": (lambda path, k: f"{path} ,{k}", "label ',0': it begins with ','"),
    "an empty field": (lambda path, k: f"{path},", "has ',' after the path"),
    "label first": (lambda path, k: f"{k} {path}", "line 1: '0 b/cat/0.png' has the label first"),
    "label first, with a tab": (lambda path, k: f"{PETS[k]}\t{path}", "has the label first"),
    "label first, with a comma": (lambda path, k: f"{k},{path}", "has the label first"),
    "three columns": (lambda path, k: f"{path} {k} 0.98", "label '0 0.98': the line has more than two columns"),
    "three columns, with tabs": (lambda path, k: f"{path}\t{PETS[k]}\tx", "more than two columns"),
    "two on one line": (lambda path, k: f"{path} b/cat/0.png x.png", "it is an image too; write one image per line"),
    "minus two": (
        lambda path, k: f"{path} {-2 if k == 2 else k}",
        "line 5: label '-2': .*whole number counted from 0",
    ),
    "floats": (lambda path, k: f"{path} {k}.0", r"line 1: label '0\.0': .*; write 0$"),
    "exponents": (lambda path, k: f"{path} {k}e0", "line 1: label '0e0': a label is a class name, or a whole number"),
    "huge": (
        lambda path, k: f"{path} {'9' * 5000}",
        "line 1: label '9+...': a label is a class name, or a whole number",
    ),
    "a drive": (lambda path, k: "C:\\data\\" + f"{path} {k}", "line 1: .* is an absolute Windows path"),
    "a share": (lambda path, k: f"\\\\server\\{path} {k}", "line 1: .* is an absolute Windows path"),
    "folders": (lambda path, k: path.rpartition("/")[0], "line 1: 'b/cat' is a folder; name its images"),
    "another case": (lambda path, k: f"{path.upper()} {k}".replace("B/", "b/"), "listed images are not in"),
    "another case of the ending": (
        lambda path, k: f"{path[:-3]}PNG {k}",
        "is not on disk, but 0.png is in that folder",
    ),
    "another root": (lambda path, k: f"data/{path} {k}", "6 of 6 listed images are not in .*; set data.root"),
    "an unknown name": (
        lambda path, k: f"{path} {'dgo' if k == 1 else PETS[k]}",
        "line 3: class 'dgo' .*, did you mean 'dog'",
    ),
    "capitals": (lambda path, k: f"{path} {PETS[k].upper()}", "line 1: class 'CAT' is not in .*, did you mean 'cat'"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_other_dialects_are_named_with_the_cure(pets, dialect):
    root, truth = pets
    line, message = DIALECTS[dialect]
    write(root, [line(path, PETS.index(name)) for path, name in truth])
    refused(root, message)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("path label", "line 1: 'path label' is a header; a list must not have a header: remove the line"),
        ("image_path\tclass", "line 1: .* is a header"),
        ("# my images", "line 1: '# my images' is a comment"),
        ("b.txt", "line 1: the line names the list itself"),
        ("b", "line 1: 'b' is a folder"),
        ("b/cat/0.png cat", "line 2: b/cat/0.png is already in line 1"),
        ("b/cat/gone.png cat", "1 of 7 listed images are not in .*line 1: b/cat/gone.png; set data.root"),
        ("\t0", "line 1: 0; set data.root"),
    ],
)
def test_one_line_that_does_not_belong(pets, first, message):
    root, truth = pets
    write(root, [first, *(f"{path} {name}" for path, name in truth)])
    refused(root, message)


def test_a_header_above_commas_is_not_what_is_told_first(pets):
    root, truth = pets
    write(root, ["path,label", *(f"{path},{name}" for path, name in truth)])
    refused(root, "line 2: .* has ',' after the path")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_encodings(tmp_path, encoding):
    """A byte order mark says what UTF-16 is. Without one, and in Latin-1, a list could only be guessed."""
    truth = make(tmp_path, ["café", "cat"])
    text = "".join(f"{path} {name}\r\n" for path, name in truth)
    (tmp_path / "b.txt").write_bytes(text.encode(encoding))
    if encoding in ("utf-16-le", "latin-1"):
        refused(tmp_path, r"b\.txt: .*save the file as UTF-8")
    else:
        assert load(tmp_path) == dict(truth)


def test_a_list_in_another_unicode_form_finds_the_images(tmp_path):
    """Paths and names written in composed letters, files in decomposed ones, as on a Mac; and the other way round."""
    for disk, text in (("NFD", "NFC"), ("NFC", "NFD")):
        root = tmp_path / disk
        truth = make(root, [unicodedata.normalize(disk, "café"), "cat"])
        write(root, [unicodedata.normalize(text, f"{path} {name}") for path, name in truth])
        assert load(root) == {path: unicodedata.normalize("NFC", name) for path, name in truth}
        assert load(root, classes=["cat", unicodedata.normalize(text, "café")])


def test_names_with_spaces_and_more_than_one_ending(tmp_path):
    truth = make(tmp_path, ["alarm clock", "cat"])
    for name in ("my photo.jpg copy.png", " x .png", "a,b;c.png", "it's.png"):
        put(tmp_path / "b" / name)
        truth.append((f"b/{name}", "cat"))
    write(tmp_path, [f"{path} {name}" for path, name in truth])
    assert load(tmp_path) == dict(truth)
    write(tmp_path, [path for path, _ in truth])
    assert load(tmp_path) == dict.fromkeys(dict(truth))


def test_source_lists_of_one_class_or_of_names_and_numbers(pets):
    root, _ = pets
    write(root, [f"a/cat/{i}.png cat" for i in range(2)], "a.txt")
    refused(root, "all images have the label 'cat', but at least two classes", source="a.txt")
    write(root, [f"a/cat/{i}.png 0" for i in range(2)], "a.txt")
    refused(root, "all images have the label 0, but at least two classes", source="a.txt")
    write(root, ["a/cat/0.png cat", "a/dog/0.png 1"], "a.txt")
    refused(root, "line 2: label '1' is a number, but others are names", source="a.txt")
    write(root, ["a/cat/0.png 2017", "a/dog/0.png 2018"], "a.txt")
    refused(root, "no image has the label 0, 1, 2; number the classes from 0", source="a.txt")
    write(root, ["a/cat/0.png 1", "a/dog/0.png 2"], "a.txt")
    refused(root, "no image has the label 0; number the classes from 0 without gaps", source="a.txt")


def test_a_file_that_is_no_txt_list(pets):
    root, _ = pets
    write(root, ["b/cat/0.png cat"], "b.csv")
    refused(root, r"b\.csv is a file, but not a list; a list ends in \.txt", target="b.csv")


# All of it together


@st.composite
def odd_lists(draw):
    """Names of classes, the lines of a list, its encoding, and the order that its author has in mind."""
    names = draw(st.sampled_from([PETS, COUNTED, NUMBERS, ["café", "Dog", "émeu"]]))
    order = draw(st.sampled_from([names, sorted(names)]))
    flat = draw(st.booleans())
    label = draw(st.sampled_from(["name", "number", "from one", "float", "none", "some"]))
    shape = draw(
        st.sampled_from(["{p} {l}", "{p}\t{l}", '"{p}" {l}', "{p},{l}", "{l} {p}", "{p};{l}", "{p} {l} 1", "{p}  {l} "])
    )
    change = draw(st.sampled_from(["none", "backslash", "header", "comment", "NFD", "twice", "gone", "blank", "upper"]))
    return names, order, flat, label, shape, change, draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))


@settings(max_examples=150, deadline=None)
@given(odd_lists(), st.booleans())
def test_labels_come_out_as_they_were_meant_or_not_at_all(case, told):
    names, order, flat, label, shape, change, encoding = case
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        truth = make(root, names, flat)
        lines, meant = [], {}
        for i, (path, name) in enumerate(truth):
            number = order.index(name)
            text = {"name": name, "number": number, "from one": number + 1, "float": f"{number}.0", "none": ""}.get(
                label, -1 if i % 3 == 2 else number
            )
            meant[path] = None if label == "none" or text == -1 else name
            lines.append(shape.format(p=path, l=text))
        if change == "backslash":
            lines = [line.replace("/", "\\") for line in lines]
        elif change == "NFD":
            lines = [unicodedata.normalize("NFD", line) for line in lines]
        elif change == "upper":
            lines = [line.replace(".png", ".PNG") for line in lines]
        elif change == "blank":
            lines = ["", *lines, "   "]
        elif change != "none":
            lines.insert(0, {"header": "path label", "comment": "# list", "gone": "b/no.png 0"}.get(change, lines[0]))
        (root / "b.txt").write_bytes("\r\n".join(lines).encode(encoding, "replace"))
        message = ""
        try:
            found = load(root, classes=list(order) if told else None)
        except UserError as error:
            message = str(error)
        if message:
            assert "\n" not in message and len(message) < 1500
            assert not (
                label in ("name", "number")
                and shape in ("{p} {l}", "{p}\t{l}", '"{p}" {l}')
                and told
                and change in ("none", "NFD", "blank")
                and encoding[:3] == "utf"
                and names != NUMBERS
            ), message
        else:
            assert found == {path: name and unicodedata.normalize("NFC", name) for path, name in meant.items()}
