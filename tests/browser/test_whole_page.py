"""The page of a run as a whole: for every reader, any names, many classes and images, and without its script."""

import pytest

from tests.browser.conftest import check_page, too_wide
from tests.browser.pages import HOSTILE, as_json, page_data, page_html, write_page

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
COLOUR = """async () => {
  const times = [];
  for (const input of document.querySelectorAll("[data-part=map] fieldset:first-child input:not(:checked)")) {
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const start = performance.now();
    input.click();
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b);
}"""

#: axe-core looks at every element, for seconds if there are many.
SMALL = {"images": 300, "pictures": 12, "points": 200}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function that writes a page and returns its path."""
    folder = tmp_path_factory.mktemp("pages")

    def write(name, *arguments, **keywords):
        return write_page(folder / f"{name}.html", page_data(*arguments, **keywords))

    return write


def test_for_every_reader(open_page, written):
    page = open_page(written("small", 4, 3, **SMALL))
    check_page(page)
    # As a reader leaves it: with marks, filters and a sorted table.
    page.get_by_role("button", name="selected").first.click()
    page.locator(".map-plot").focus()
    for key in ("Enter", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "+", "+", "Enter"):
        page.keyboard.press(key)
    check_page(page, schemes=["light"], widths=[390])


def test_hostile_names(open_page, written):
    page = open_page(written("hostile", HOSTILE, 2, **SMALL | {"pictures": 60}))
    check_page(page, schemes=["light"])
    assert page.locator("img[src='x']").count() == 0 and page.locator("b").count() == 0
    for name in HOSTILE:
        assert page.locator(".classes").get_by_title(name, exact=True).inner_text() == name.strip()
    page.locator("[data-part=selection]").get_by_label("Search classes").fill("PLANE")
    assert page.locator(".classes .name").all_inner_texts() == ["🛩️ Plane"]
    page.locator("td[data-truth='0'][data-label='0']").click()
    assert HOSTILE[0] in page.locator("[data-part=gallery] [data-live] li img").first.get_attribute("alt")


def test_without_labels_nothing_is_said_about_truth(open_page, written):
    page = open_page(written("unlabelled", 4, 3, labelled=False, **SMALL))
    check_page(page, schemes=["dark"], widths=[390])
    said = page.locator("body").inner_text().lower()
    for word in ("right", "wrong", "true class", "oracle", "tp rate", "accuracy of"):
        assert word not in said.replace("accuracy (oracle)", "").replace("tp rate (oracle)", ""), word
    assert page.locator("[data-part=map]").get_by_role("radio").count() == 3 + 3
    assert page.get_by_label("Order").last.input_value() == "unsure"


def test_many_classes(open_page, written):
    page = open_page(written("many", 345, 3, 4000, pictures=60))
    assert page.locator("[data-part=selection]").get_by_role("status").inner_text() == "12 of 345 shown"
    assert page.locator(".classes li").count() == 12 and page.get_by_label("True class (oracle)").count() == 0
    page.locator("[data-part=gallery]").get_by_label("Label is (oracle)").select_option(label="right")
    assert page.locator("[data-part=gallery] li.right").count() == 24
    page.locator("[data-part=gallery]").get_by_label("Round", exact=True).select_option(label="round 0")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert too_wide(page) is None
    assert page.said == []


def test_the_slider_answers_within_100_ms(open_page, written):
    """12 classes, 20 rounds: from the event to the next frame. The median counts, since the machine may be busy."""
    page = open_page(written("long", 12, 20, 3000))
    times = page.evaluate(MOVE)
    assert len(times) == 20 and times[10] < 100, times


def test_20000_points_are_drawn_within_50_ms(open_page, written):
    page = open_page(written("large", 10, 2, 12_000, points=20_000))
    times = page.evaluate(COLOUR) + page.evaluate(COLOUR)
    assert len(times) == 6 and min(times) < 50, times  # the machine may be busy
    assert page.said == []


def test_without_script_the_fallbacks_are_read(open_page, written):
    page = open_page(written("plain"), script=False)
    assert page.locator("html.no-script").count() == 1
    assert page.locator(".fallback").count() == page.locator(".fallback:visible").count() > 0
    assert (
        page.locator("[data-measure]:visible").count() == 3 and page.locator("[data-measure] h4:visible").count() == 3
    )
    assert page.locator("button:visible, input:visible, select:visible").count() == 0
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.locator("table").first.is_visible()


@pytest.mark.parametrize(
    ("part", "breaks"),
    [
        ("curves", lambda data: data["curves"][1].pop("series")),
        ("selection", lambda data: data["selection"]["rounds"][0].pop("classes")),
        ("gallery", lambda data: data["pictures"].pop("states")),
        ("map", lambda data: data["map"].pop("x")),
    ],
)
def test_a_part_that_fails_leaves_its_fallback(open_page, tmp_path, part, breaks):
    data = page_data(3, 2, 100, points=50, pictures=10)
    sound = page_html(data)
    before = as_json(data)
    breaks(data)
    file = tmp_path / "broken.html"
    file.write_text(sound.replace(before, as_json(data)), encoding="utf-8")
    page = open_page(file)
    place = page.locator(f"[data-part={part}]")
    assert place.locator(".fallback:visible").count() == place.locator(".fallback").count() > 0
    assert place.locator("[data-live]").count() == 0
    assert len(page.said) == 1 and f'The part "{part}"' in page.said[0]
    for name in {"curves", "selection", "gallery", "map"} - {part}:
        assert page.locator(f"[data-part={name}] .fallback:visible").count() == 0


def test_on_paper_there_are_no_controls_and_light_colours(open_page, written):
    page = open_page(written("plain"), scheme="dark")
    dark = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')") != dark
    assert page.locator(".controls:visible, input:visible, select:visible").count() == 0
    assert page.locator(".classes li:visible").count() == 6


def test_little_data(open_page, tmp_path):
    """One class, one round, five images, a curve without a value; then nothing but curves."""
    data = page_data(1, 1, 5, pictures=1, points=2)
    data["curves"][0]["series"][0]["values"] = [None]
    page = open_page(write_page(tmp_path / "little.html", data))
    assert page.locator(".fallback:visible").count() == 0 and page.said == []
    assert "class mean: no value" in page.locator(".curve").first.get_attribute("aria-label")
    for name in ("pictures", "map", "confusion"):
        data[name] = None
    page = open_page(write_page(tmp_path / "less.html", data))
    assert page.locator("[data-part=gallery] .fallback:visible, [data-part=map] .fallback:visible").count() == 2
    assert page.locator("[data-part=curves] .fallback:visible").count() == 0 and page.said == []
