"""Pages of adaptation as the program itself writes them, opened in a browser from the disk."""

import functools
import re

import numpy as np
import pytest

from tests.adaptation.conftest import run_maker
from tests.adaptation.test_page import big_record
from tests.browser.conftest import check_page, load, too_wide
from tests.browser.test_parts import choose, counted, drag, marked, part, show_all
from tests.in_process import adapt
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.page import adaptation_page
from uda.data.images import ImageArray
from uda.models.network import Prediction
from uda.report import page as run_page
from uda.report.feature_map import MapPart
from uda.report.html import clean_name
from uda.report.image_table import ImageTable
from uda.report.pictures import thumbnail
from uda.run_pages import rebuild

#: CI opens these pages in a stage of its own.
pytestmark = pytest.mark.slow

QUICK = [
    *("data.rendered_per_class=50", "report.loggers=[]", "runtime.threads=1"),
    *("source.epochs=4", "self_training.rounds=3", "self_training.steps=15"),
    *("adaptation.steps=6", "adaptation.evaluate_every=3"),
]
MOVE = """async () => {
  const slider = document.querySelector("[data-part=selection] input[type=range]");
  const times = [];
  for (let round = 0; round <= Number(slider.max); round += 1) {
    const start = performance.now();
    slider.value = round;
    slider.dispatchEvent(new Event("input"));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b);
}"""
LONG = "b" * 300
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    f"{LONG}1",
    f"{LONG}2",
    "מטוס גדול",
    "طائرة كبيرة",
    "飛行機の絵",
    "🛩️ 👩‍🚀",
    "line\nbreak \x1b[31mred\x1b[0m nul\0",
    "$x$ \"quoted\" & 'so' {{ page }}",
)


# What is opened. Each page is written once.


def finish(run, rounds, source_images=60):
    """A whole run with a map, as the command writes it. Returns its folder."""
    (run.folder / "config.yaml").write_text(run.config.to_yaml(), encoding="utf-8")
    (run.folder / "environment.json").write_text("{}")
    report = run.begin(rounds)
    last, rows = run.prediction(rounds), np.arange(source_images)
    of_source = Prediction(last.features[rows] + 1, last.logits[rows], last.weight)
    names = [f"source/{row}.png" for row in rows]
    drawn = MapPart(of_source, names, run.labels[rows], np.zeros(source_images, int))
    report.write_map(drawn, np.arange(len(run.labels)), last)
    report.finish(60.0)
    return run.folder


def new_run(folder, **keywords):
    """A run of the real parts without training, in a folder that is made."""
    folder.mkdir(parents=True)
    return run_maker(folder)(page=True, **{"gallery": 60, **keywords})


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """`written(name)` writes the page of that name, the first time, and returns its path."""
    folder = tmp_path_factory.mktemp("real")

    @functools.cache
    def write(name):
        return WRITERS[name](folder / name)

    return write


def digits(folder):
    assert adapt(["--cfg", "digits_avh.yaml", f"output={folder}", *QUICK]) == 0
    return folder / "report.html"


def without_rounds(folder):
    assert adapt(["--cfg", "digits_mcc.yaml", f"output={folder}", *QUICK, "report.gallery=30"]) == 0
    return folder / "report.html"


def unlabelled(folder):
    return finish(new_run(folder, labelled=False), 3) / "report.html"


def many_classes(folder):
    names = [f"class {number}" for number in range(345)]
    return finish(new_run(folder, classes=names, images=2000), 2) / "report.html"


def hostile(folder):
    run = new_run(folder, classes=HOSTILE, images=400)
    settings = run.config.model_dump(exclude_unset=True)
    settings |= {"name": HOSTILE[0], "data": {"source": LONG, "target": HOSTILE[0]}}
    run.config = AdaptationConfig.model_validate(settings)
    paths = [f"{HOSTILE[row % len(HOSTILE)]}/{row}.png" for row in range(400)]
    run.images = ImageArray(run.images.together(np.arange(400)).numpy(), paths)
    return finish(run, 2) / "report.html"


def half_written(folder):
    finish(new_run(folder), 3)
    (folder / "rounds" / "01" / "report.json").unlink()
    rebuild(folder)
    return folder / "report.html"


def running(folder):
    new_run(folder).begin(2)
    return folder / "report.html"


def large(folder):
    """12 classes, 20 rounds, 55,000 target images: as large as VisDA-2017's."""
    folder.mkdir()
    record, config = big_record(folder, 12, 55_000, 20)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 3, 64, 64), np.uint8)
    record.pictures = dict.fromkeys(range(400), thumbnail(ImageArray(pixels, ["noise"]), 0))
    page = folder / "report.html"
    page.write_text(adaptation_page(record, config).render(), encoding="utf-8")
    return page


WRITERS = {
    write.__name__: write
    for write in (digits, without_rounds, unlabelled, many_classes, hostile, half_written, running, large)
}


# Every page


@pytest.mark.parametrize("name", WRITERS)
def test_for_every_reader(open_page, written, name):
    page = open_page(written(name))
    check_page(page)
    assert page.locator(".fallback:visible").count() == 0, "every part is built"


@pytest.mark.parametrize("name", ["digits", "many_classes"])
def test_axe_finds_nothing_on_a_whole_page(open_page, written, name):
    check_page(open_page(written(name)), whole=True)


# The page of a real run


@pytest.fixture(scope="module")
def tab(written, open_shared_page):
    return open_shared_page(written("digits"))


@pytest.fixture
def page(tab, written):
    """The digits' page, freshly loaded in a tab that the tests share."""
    tab.said.clear()
    tab.mouse.move(0, 0)
    load(tab, written("digits"))
    yield tab
    assert tab.said == []


@pytest.fixture(scope="module")
def states(written):
    """What `images.parquet` says of each state of the digits' page: label, truth, chosen, flipped."""
    folder, found, before = written("digits").parent / "rounds", {}, None
    for number in range(3):
        table = ImageTable.read(folder / f"{number:02d}" / "images.parquet")
        chosen = 2 * table.get("selected") + table.get("softmax_selected")
        found[f"round {number}"] = (table.get("pseudo_label"), table.get("label"), chosen)
    found["final"] = (table.get("prediction"), table.get("label"), np.zeros(5000, int))
    for name, (label, truth, chosen) in found.items():
        found[name] = (label, truth, chosen, np.zeros(5000, bool) if before is None else label != before)
        before = label
    return found


def card_of(page, name):
    cards = part(page, "selection").get_by_role("listitem")
    return cards.filter(has=page.get_by_title(name, exact=True)).inner_text()


def test_the_slider_tells_the_counts_of_the_images(page, states):
    """By mouse to the first round, by keyboard to the others."""
    slider = page.get_by_role("slider")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    for number in range(3):
        assert slider.get_attribute("aria-valuetext") == f"round {number} of 0 to 2"
        label, truth, chosen, _ = states[f"round {number}"]
        for digit in range(10):
            mine = label == digit
            selected = mine & (chosen >= 2)
            text = card_of(page, str(digit))
            assert f"{selected.sum():,} of {mine.sum():,} selected" in text
            if selected.any():
                rate = float(re.search(r"TP rate oracle\n([\d.]+) %", text)[1])
                assert rate == pytest.approx(100 * (truth == digit)[selected].mean(), abs=0.051)
        page.keyboard.press("ArrowRight")


def test_the_table_of_classes_is_sorted_and_searched(page, states):
    label, _, chosen, _ = states["round 2"]
    selected = np.bincount(label[chosen >= 2], minlength=10)
    table = part(page, "class-table")
    head = table.get_by_role("columnheader", name="selected")
    head.get_by_role("button").click()
    place = head.evaluate("cell => cell.cellIndex + 1")
    cells = table.locator(f"tbody td:nth-child({place})").all_inner_texts()
    assert cells == [f"{count:,}" for count in sorted(selected, reverse=True)]
    table.get_by_label("Search classes").fill("7")
    assert table.locator("tbody th:visible").all_inner_texts() == ["7"]


def test_a_click_on_the_confusion_leads_to_its_images(page, states):
    label, truth, *_ = states["final"]
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (truth, label), 1)
    row, column = np.unravel_index(np.argmax(counts - np.diag(counts.diagonal())), counts.shape)
    page.locator(f"td[data-truth='{row}'][data-label='{column}']").click()
    shown, total = counted(page)
    assert total == counts[row, column] and shown > 0
    for image in part(page, "gallery").locator("[data-live] li img").all():
        place = int(image.get_attribute("title").split("/")[1])
        assert (truth[place], label[place]) == (row, column)


FILTERS = (
    ({}, lambda label, truth, chosen, flipped: label >= 0),
    ({"Label": "3"}, lambda label, truth, chosen, flipped: label == 3),
    ({"True class (oracle)": "8", "Label is (oracle)": "wrong"}, lambda label, truth, *_: (truth == 8) & (label != 8)),
    ({"Label is (oracle)": "right"}, lambda label, truth, *_: truth == label),
    ({"Chosen": "chosen by avc"}, lambda label, truth, chosen, flipped: chosen >= 2),
    ({"Chosen": "only by avc", "Label": "0"}, lambda label, truth, chosen, *_: (chosen == 2) & (label == 0)),
    ({"Chosen": "only by softmax"}, lambda label, truth, chosen, flipped: chosen == 1),
    ({"Chosen": "by both"}, lambda label, truth, chosen, flipped: chosen == 3),
    ({"Chosen": "not by avc"}, lambda label, truth, chosen, flipped: chosen < 2),
    ({"flipped": True}, lambda label, truth, chosen, flipped: flipped),
)


@pytest.mark.parametrize("state", ["round 0", "round 1", "round 2", "final"])
def test_the_counts_of_the_gallery_are_those_of_the_images(page, states, state):
    gallery, tried = part(page, "gallery"), 0
    for filters, test in FILTERS:
        if ("Chosen" in filters and state == "final") or ("flipped" in filters and state == "round 0"):
            continue
        show_all(page)
        choose(page, "gallery", "Round", state)
        for title, option in filters.items():
            if title == "flipped":
                gallery.get_by_label("label changed since").check()
            else:
                choose(page, "gallery", title, option)
        assert counted(page)[1] == test(*states[state]).sum(), filters
        if not filters:  # so that there is something to clear
            choose(page, "gallery", "Label", "1")
        tried += 1
    assert tried >= 5


@pytest.mark.parametrize("tool", ["box", "lasso"])
def test_what_lies_in_a_part_of_the_map_comes_into_the_gallery(page, written, states, tool):
    """The left half of the map. A point that lies on the edge may count or not."""
    part(page, "map").get_by_role("radio", name=tool).check(force=True)
    corners = [(0.005, 0.005), (0.5, 0.005), (0.5, 0.995), (0.005, 0.995)]  # the corners are round
    drag(page, corners if tool == "lasso" else [corners[0], corners[2]])
    width = part(page, "map").locator("canvas").first.bounding_box()["width"]
    table = ImageTable.read(written("digits").parent / "map.parquet")
    x = table.get("x")
    place = 12 + (x - x.min()) / (x.max() - x.min()) * (width - 24)
    images, sources = marked(page)
    for found, which in ((images, table.get("row") >= 0), (sources, table.get("row") < 0)):
        assert (place[which] < width / 2 - 2).sum() <= found <= (place[which] < width / 2 + 2).sum()
    assert counted(page) == (24, images) and 500 < images < 4500
    choose(page, "gallery", "Label is (oracle)", "wrong")
    inside = set(table.get("row")[place < width / 2 + 2].tolist())
    label, truth, *_ = states["final"]
    for image in part(page, "gallery").locator("[data-live] li img").all():
        row = int(image.get_attribute("title").split("/")[1])
        assert row in inside and label[row] != truth[row]


def test_on_paper_the_page_has_no_controls(page):
    page.emulate_media(media="print")
    assert page.locator("input:visible, select:visible, .button:visible").count() == 0
    assert page.locator("[data-part=heat] h4:visible").count() == 1 and page.locator("canvas:visible").count() > 8
    assert page.pdf().count(b"/Type /Page\n") < 20
    page.emulate_media(media="screen")


def test_without_its_script_the_page_is_read(open_page, written, states):
    page = open_page(written("digits"), width=390, script=False)
    label, truth, *_ = states["final"]
    mean = np.mean([(label == digit)[truth == digit].mean() for digit in range(10)])
    assert f"{100 * mean:.2f}" in page.locator(".card.final").inner_text()
    assert page.locator("[data-curve] svg:visible").count() == page.locator("[data-curve]").count() > 8
    assert page.locator("[data-part=selection] li:visible").count() == 10
    assert page.locator("[data-measure]:visible").count() == 3
    images = page.locator("[data-part=gallery] li img")
    assert images.count() == 24 and images.evaluate_all("all => all.every((one) => one.naturalWidth > 0)")
    assert page.locator("[data-part=map] img:visible").count() == 1
    assert page.locator("button:visible, input:visible, select:visible").count() == 0
    assert too_wide(page) is None


def test_text_of_twice_the_size_fits(page):
    """As a reader has it who sets the browser's text size to 200 %."""
    size = "parseFloat(getComputedStyle(document.querySelector('.lead')).fontSize)"
    before = page.evaluate(size)
    style = page.add_style_tag(content="html { font-size: 200%; }")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert too_wide(page) is None, width
    assert page.evaluate(size) > 1.8 * before
    cut = """() => [...document.querySelectorAll(".control select, .segmented label, .card, .button")]
      .filter((one) => one.offsetParent && one.scrollWidth > one.clientWidth + 2).map((one) => one.outerHTML)"""
    assert page.evaluate(cut) == []
    style.evaluate("style => style.remove()")
    page.set_viewport_size({"width": 1280, "height": 900})


# Others


def test_without_labels_nothing_is_said_about_truth(open_page, written):
    page = open_page(written("unlabelled"))
    said = page.locator("body").inner_text().lower()
    for word in ("right", "wrong", "true class", "oracle", "tp rate"):
        assert word not in said, word
    assert part(page, "map").get_by_role("radio").count() == 3 + 3
    assert part(page, "gallery").get_by_label("Order").input_value() == "unsure"
    assert counted(page) == (24, 240)


def test_of_many_classes_the_largest_come_first(open_page, written):
    page = open_page(written("many_classes"))
    selection, gallery = part(page, "selection"), part(page, "gallery")
    assert selection.get_by_role("status").inner_text() == "12 of 345 shown"
    label = ImageTable.read(written("many_classes").parent / "rounds" / "01" / "images.parquet").get("pseudo_label")
    largest = sorted(range(345), key=lambda number: (-np.sum(label == number), number))[:12]
    names = selection.locator("[data-live] .classes .name").all_inner_texts()
    assert names == [f"class {number}" for number in largest]
    assert page.get_by_label("True class (oracle)").count() == 0
    gallery.get_by_label("Label is (oracle)").select_option(label="right")
    assert gallery.locator("[data-live] li.wrong").count() == 0 < gallery.locator("[data-live] li.right").count()


def test_hostile_names(open_page, written):
    page = open_page(written("hostile"))
    table = ImageTable.read(written("hostile").parent / "rounds" / "01" / "images.parquet")
    assert page.locator("img[src='x'], b").count() == 0
    names = part(page, "selection").locator("[data-live] .classes .name")
    titles = [name.get_attribute("title") for name in names.all()]
    assert sorted(titles) == sorted(clean_name(name) for name in HOSTILE)
    part(page, "selection").get_by_label("Search classes").fill("機")
    assert names.all_inner_texts() == ["飛行機の絵"]
    for number in range(len(HOSTILE)):
        show_all(page)
        part(page, "gallery").get_by_label("Label", exact=True).select_option(value=str(number))
        assert counted(page)[1] == (table.get("prediction") == number).sum()
    page.locator("td[data-truth='0'][data-label='0']").click()
    assert HOSTILE[0] in part(page, "gallery").locator("[data-live] li img").first.get_attribute("alt")
    assert page.said == []


def test_a_half_written_folder_says_what_is_wrong(open_page, written):
    page = open_page(written("half_written"))
    wrong = page.get_by_role("region", name="What is wrong with this folder")
    assert "Report 1 in rounds/ is missing" in wrong.inner_text()
    assert page.get_by_role("region", name="Table of the rounds").get_by_role("row").count() == 1 + 1 + 2
    assert page.get_by_role("slider").get_attribute("aria-valuetext") == "round 2 of 0 to 2"


def test_the_page_of_a_running_job_follows_it_and_keeps_what_the_reader_chose(open_page, tmp_path, monkeypatch):
    monkeypatch.setattr(run_page, "RELOAD_SECONDS", 1)
    run = new_run(tmp_path / "run")
    report = run.begin(2)
    page = open_page(run.folder / "report.html")
    status = page.locator(".status")
    assert "This run goes on: round 2 of 20 done" in status.inner_text()
    page.get_by_role("slider").press("Home")
    choose(page, "gallery", "Label", "bee")
    page.evaluate("window.before = true; window.scrollTo(0, 500); document.activeElement.blur()")
    report.round(run.record(2))
    page.wait_for_function("document.querySelector('.status').textContent.includes('round 3 of 20 done')")
    page.wait_for_function("window.before === undefined && document.documentElement.dataset.ready === 'true'")
    assert page.get_by_role("slider").get_attribute("aria-valuetext") == "round 0 of 0 to 2"
    assert part(page, "gallery").get_by_label("Label", exact=True).locator("option:checked").inner_text() == "bee"
    assert page.evaluate("window.scrollY") == 500 and page.said == []


def test_a_page_of_55_000_images_is_below_5_mb_and_its_slider_answers_within_100_ms(open_page, written):
    """From the event to the next frame. The median counts, since the machine may be busy."""
    file = written("large")
    assert file.stat().st_size < 5_000_000
    page = open_page(file)
    times = page.evaluate(MOVE)
    assert len(times) == 20 and times[10] < 100, times
    assert page.locator("[data-live] .classes li").count() == 12
    assert counted(page)[0] == 24 and page.said == []
