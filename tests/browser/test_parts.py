"""The interactive parts of a run's page do what they say, in a browser."""

import re

import pytest

from tests.browser.conftest import load
from tests.browser.pages import page_data, write_page


@pytest.fixture(scope="session")
def data():
    return page_data(6, 4)


@pytest.fixture(scope="session")
def file(data, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page") / "run.html", data)


@pytest.fixture(scope="module")
def tab(file, open_shared_page):
    return open_shared_page(file)


@pytest.fixture
def page(tab, file):
    """The page, freshly loaded in a tab that the tests share."""
    tab.said.clear()
    tab.mouse.move(0, 0)
    tab.emulate_media(color_scheme="light")
    load(tab, file)
    yield tab
    assert tab.said == []


def part(page, name):
    return page.locator(f'[data-part="{name}"]')


def number_of(state, data, test):
    """How many target images of a state pass `test(label, truth, chosen, flipped)`, by the cube."""
    width, total = len(data["truths"]), 0
    for key, count in zip(state["cube"][::2], state["cube"][1::2], strict=True):
        label, truth = divmod(key // 8, width)
        total += count * bool(test(label, truth, key // 2 % 4, key % 2))
    return total


def counted(page):
    """What the gallery says: pictures shown, images in all."""
    text = part(page, "gallery").get_by_role("status").inner_text().replace(",", "")
    return tuple(int(count) for count in re.search(r"(\d+) of (\d+) shown", text).groups())


def show_all(page):
    """Clear the filters that the gallery begins with."""
    part(page, "gallery").get_by_role("button", name="Clear filters").click()


def choose(page, name, title, option):
    part(page, name).get_by_label(title, exact=True).select_option(label=option)


# Curves


def test_curves_are_drawn_and_told_in_words(page, data):
    drawn = part(page, "curves").get_by_role("img")
    assert drawn.count() == len(data["curves"]) and part(page, "curves").locator(".fallback:visible").count() == 0
    first, last = data["curves"][0]["series"][1]["values"][0], data["curves"][0]["series"][1]["values"][-1]
    words = drawn.first.get_attribute("aria-label")
    assert f"overall: {first:.1f} at round 0, {last:.1f} at round 3" in words and "source: 61.3" in words


def test_the_legend_tells_the_last_values_or_those_under_the_pointer(page, data):
    values = data["curves"][2]["series"][0]["values"]
    figure = part(page, "curves").locator('[data-curve="selected"]')
    line = figure.get_by_role("button", name="softmax too")
    assert line.inner_text().endswith(f"{values[-1]}")
    box = figure.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 20)
    assert line.inner_text().endswith(f"{values[0]}") and "round 0" in figure.inner_text()
    # The other curves tell the same round.
    assert "round 0" in part(page, "curves").locator('[data-curve="class-mean"]').inner_text()


def test_the_legend_hides_a_line(page):
    figure = part(page, "curves").locator('[data-curve="selected"]')
    before = figure.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    button = figure.get_by_role("button", name="softmax too")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    page.wait_for_function(
        "before => document.querySelector('[data-curve=selected] canvas').toDataURL() !== before", arg=before
    )


def test_curves_follow_the_colour_scheme(page):
    canvas = part(page, "curves").locator("canvas").first
    before = canvas.evaluate("canvas => canvas.toDataURL()")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("before => document.querySelector('canvas').toDataURL() !== before", arg=before)


# Selection


def figures_of(page, name):
    card = part(page, "selection").get_by_role("listitem").filter(has=page.get_by_title(name, exact=True))
    return card.inner_text()


def test_the_slider_moves_by_keyboard_and_changes_figures(page, data):
    slider = page.get_by_role("slider")
    assert slider.get_attribute("aria-valuetext") == "round 3 of 0 to 3"
    slider.focus()
    for number in (2, 1, 0):
        page.keyboard.press("ArrowLeft")
        figures = data["selection"]["rounds"][number]["classes"][2]
        text = figures_of(page, "class 2")
        assert f"{figures['selected']} of {figures['images']} selected" in text
        assert f"λ {figures['lambda']:.3f}" in text and f"{100 * figures['tp_rate']:.1f} %" in text
        assert part(page, "selection").locator(".slider").inner_text().endswith(f"round {number}")
        assert slider.get_attribute("aria-valuetext") == f"round {number} of 0 to 3"
    page.keyboard.press("End")
    assert slider.input_value() == "3"


def test_the_bars_are_the_images_of_the_class(page, data):
    """A bar is as high as its share of the tallest bin of all rounds, and stands on the bars below."""
    rounds = [entry["classes"][1] for entry in data["selection"]["rounds"]]
    tallest = max(sum(bins) for of in rounds for bins in zip(of["right"], of["wrong"], of["unknown"], strict=True))
    card = part(page, "selection").get_by_role("listitem").filter(has=page.get_by_title("class 1", exact=True))
    floor = [60.0] * 24
    for layer in ("right", "wrong", "unknown"):
        path = card.locator(f".bars-{layer}").get_attribute("d")
        bars = [[float(number) for number in bar] for bar in re.findall(r"M([\d.]+) ([\d.]+)v-([\d.]+)", path)]
        expected = []
        for place, count in enumerate(rounds[-1][layer]):
            if count:
                expected.append([10 * place + 0.5, floor[place], 60 * count / tallest])
                floor[place] -= 60 * count / tallest
        assert bars == [pytest.approx(bar, abs=1e-6) for bar in expected]


def test_classes_are_searched_and_ordered(page, data):
    last = data["selection"]["rounds"][-1]["classes"]
    names = part(page, "selection").locator(".classes .name")
    for order, key in {
        "fewest selected": lambda of: of["selected"],
        "lowest TP rate (oracle)": lambda of: of["tp_rate"],
        "most images": lambda of: -of["images"],
    }.items():
        choose(page, "selection", "Order", order)
        ordered = sorted(range(6), key=lambda number: (key(last[number]), number))
        assert names.all_inner_texts() == [data["classes"][number] for number in ordered]
    part(page, "selection").get_by_label("Search classes").fill("SS 4")
    assert names.all_inner_texts() == ["class 4"]
    assert part(page, "selection").get_by_role("status").inner_text() == "1 of 6 shown"


# Tables


def column(page, number):
    return part(page, "class-table").locator("tbody tr:visible").locator(f"td:nth-child({number})").all_inner_texts()


def test_a_table_is_sorted_by_a_column_in_both_directions(page, data):
    head = part(page, "class-table").get_by_role("columnheader", name="selected")
    assert head.get_attribute("aria-sort") is None
    selected = [of["selected"] for of in data["selection"]["rounds"][-1]["classes"]]
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, 3) == [str(count) for count in sorted(selected, reverse=True)]
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, 3) == [str(count) for count in sorted(selected)]
    other = part(page, "class-table").get_by_role("columnheader", name="class")
    other.get_by_role("button").click()
    assert other.get_attribute("aria-sort") == "ascending" and head.get_attribute("aria-sort") is None


def test_empty_cells_come_last_in_both_directions(open_page, data, tmp_path):
    selection = {"bins": 24, "rounds": [dict(data["selection"]["rounds"][-1])]}
    classes = [dict(of) for of in selection["rounds"][0]["classes"]]
    classes[2]["lambda"] = None
    selection["rounds"][0]["classes"] = classes
    page = open_page(write_page(tmp_path / "run.html", data | {"selection": selection}))
    button = part(page, "class-table").get_by_role("button", name="lambda")
    for _ in range(2):
        button.click()
        assert column(page, 4)[-1] == "" and "" not in column(page, 4)[:-1]


def test_a_table_is_filtered_by_class(page):
    table = part(page, "class-table")
    table.get_by_label("Search classes").fill("class 3")
    assert table.locator("tbody tr:visible").count() == 1
    assert table.get_by_role("status").inner_text() == "1 of 6 shown"


def test_one_measure_is_shown_at_a_time(page):
    heat = part(page, "heat")
    assert heat.get_by_role("table").count() == 1
    heat.get_by_role("radio", name="TP rate (oracle)").focus()
    page.keyboard.press("ArrowRight")
    assert heat.get_by_role("radio", name="Selected").is_checked()
    assert heat.locator('[data-measure="selected"]').is_visible() and heat.get_by_role("table").count() == 1


# Gallery and confusion


def test_a_click_on_the_confusion_sets_the_filters_of_the_gallery(page, data):
    """The cell is one of a mistake, so that a row is not taken for a column."""
    counts, pictures = data["confusion"]["counts"], data["pictures"]
    pairs = zip(pictures["truth"], pictures["states"][-1]["label"], strict=True)
    truth, label = next((t, p) for t, p in pairs if t < 6 and t != p and counts[t][p] != counts[p][t])
    page.locator(f'td[data-truth="{truth}"][data-label="{label}"]').click()
    gallery = part(page, "gallery")
    titles = ("Round", "Label", "True class (oracle)")
    chosen = {title: gallery.get_by_label(title, exact=True).input_value() for title in titles}
    assert chosen == {"Round": "4", "Label": str(label), "True class (oracle)": str(truth)}
    shown = gallery.get_by_role("listitem").all_inner_texts()
    assert counted(page) == (len(shown), counts[truth][label]) and len(shown) > 0
    assert all(f"label class {label}" in text and f"is class {truth}" in text for text in shown)
    page.wait_for_function("document.querySelector('[data-part=gallery]').getBoundingClientRect().top < innerHeight")


def test_the_confusion_is_one_stop_of_the_tab_key_and_opens_by_enter(page, data):
    cells = part(page, "confusion").get_by_role("gridcell")
    assert cells.count() == 36 and part(page, "confusion").locator('td[tabindex="0"]').count() == 1
    part(page, "confusion").locator('td[tabindex="0"]').focus()
    for key in ("ArrowUp", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.dataset.truth + document.activeElement.dataset.label") == "11"
    page.keyboard.press("Enter")
    assert counted(page)[1] == data["confusion"]["counts"][1][1]


def test_the_gallery_begins_with_confident_mistakes(page, data):
    wrong = number_of(data["states"][-1], data, lambda label, truth, *_: truth not in (label, 7))
    sample, final = data["pictures"], data["pictures"]["states"][-1]
    mistakes = [n for n in range(120) if sample["truth"][n] not in (final["label"][n], 7)]
    first = min(mistakes, key=lambda number: -final["score"][number])
    assert counted(page) == (len(mistakes), wrong) and 0 < len(mistakes) < 24
    assert part(page, "gallery").get_by_role("listitem").first.get_attribute("data-picture") == str(first)


@pytest.mark.parametrize(
    ("filters", "test"),
    [
        ({}, lambda label, truth, chosen, flipped: True),
        ({"Label": "class 2"}, lambda label, truth, chosen, flipped: label == 2),
        ({"True class (oracle)": "another class"}, lambda label, truth, chosen, flipped: truth == 6),
        ({"Label is (oracle)": "right"}, lambda label, truth, chosen, flipped: truth == label),
        ({"Label is (oracle)": "wrong"}, lambda label, truth, chosen, flipped: truth not in (label, 7)),
        ({"Chosen": "chosen by avc"}, lambda label, truth, chosen, flipped: chosen >= 2),
        ({"Chosen": "only by softmax"}, lambda label, truth, chosen, flipped: chosen == 1),
        ({"Chosen": "by both", "Label": "class 0"}, lambda label, truth, chosen, flipped: chosen == 3 and label == 0),
        ({"Chosen": "not by avc"}, lambda label, truth, chosen, flipped: chosen < 2),
        ({"flipped": True}, lambda label, truth, chosen, flipped: flipped == 1),
    ],
)  # fmt: skip
def test_filters_count_all_images_and_show_those_with_a_picture(page, data, filters, test):
    show_all(page)
    choose(page, "gallery", "Round", "round 2")
    for title, option in filters.items():
        if title == "flipped":
            part(page, "gallery").get_by_label("label changed since").check()
        else:
            choose(page, "gallery", title, option)
    state, sample = data["pictures"]["states"][2], data["pictures"]
    passing = [
        test(*image) for image in zip(state["label"], sample["truth"], state["chosen"], state["flipped"], strict=True)
    ]
    shown, total = counted(page)
    assert total == number_of(data["states"][2], data, test) > 0
    assert shown == min(24, sum(passing)) == part(page, "gallery").get_by_role("listitem").count()


def test_more_pictures_are_shown_24_at_a_time(page, data):
    gallery = part(page, "gallery")
    show_all(page)
    assert counted(page) == (24, 600)
    gallery.get_by_role("button", name="Show more pictures").click()
    assert counted(page) == (48, 600)
    for _ in range(3):
        gallery.get_by_role("button", name="Show more pictures").click()
    assert counted(page) == (120, 600) and gallery.get_by_role("button", name="Show more pictures").count() == 0


def test_the_order_of_pictures(page, data):
    show_all(page)
    paths = part(page, "gallery").locator("[data-live] li img")
    sample = data["pictures"]
    for order, values, sign in (
        ("surest first", "score", -1),
        ("least sure first", "score", 1),
        ("hardest first (AVH)", "avh", -1),
    ):
        choose(page, "gallery", "Order", order)
        ordered = sorted(range(120), key=lambda n: sign * sample["states"][-1][values][n])[:24]
        assert [image.get_attribute("title") for image in paths.all()] == [sample["paths"][n] for n in ordered]


def test_a_picture_says_what_it_is_in_words(page, data):
    choose(page, "gallery", "Round", "round 1")
    choose(page, "gallery", "Label is (oracle)", "wrong")
    first = part(page, "gallery").get_by_role("listitem").first
    number = int(first.get_attribute("data-picture"))
    sample, state = data["pictures"], data["pictures"]["states"][1]
    label, truth = data["classes"][state["label"][number]], data["truths"][sample["truth"][number]]
    alt = first.get_by_role("img").get_attribute("alt")
    assert alt == f"Image {sample['paths'][number]}, pseudo-label {label}, true class {truth}: wrong"
    assert first.locator("img").evaluate("image => getComputedStyle(image).borderTopStyle") == "dashed"
    assert f"score {state['score'][number]:.3f} = {state['threshold_ratio'][number]:.2f} λ" in first.inner_text()


# Map


def box(page):
    part(page, "map").locator(".map-plot").scroll_into_view_if_needed()
    return part(page, "map").locator(".map-plot").bounding_box()


def drag(page, places):
    """Drag the pointer over the map. Places are shares of its width and height."""
    at = box(page)
    points = [(at["x"] + x * at["width"], at["y"] + y * at["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=3)
    page.mouse.up()


def marked(page):
    """The numbers of marked target and source images, by what the map says."""
    text = part(page, "map").get_by_role("status").inner_text().replace(",", "")
    return [int(number) for number in re.findall(r"\d+", text)]


def test_a_box_in_the_map_marks_images_for_the_gallery(page, data):
    """The box covers all of the map: 400 target and 400 source images."""
    drag(page, [(0.005, 0.005), (0.995, 0.995)])
    assert marked(page) == [400, 400] and counted(page) == (24, 400)
    chip = part(page, "gallery").get_by_role("button", name="images marked in the map")
    choose(page, "gallery", "Label is (oracle)", "right")
    right = counted(page)[1]
    choose(page, "gallery", "Label is (oracle)", "wrong")
    assert right > counted(page)[1] > 0 and right + counted(page)[1] < 400  # some are not labelled
    chip.click()
    assert not chip.is_visible() and marked(page) == []
    assert counted(page)[1] == number_of(data["states"][-1], data, lambda label, truth, *_: truth not in (label, 7))


def test_a_lasso_marks_what_lies_in_it(page, data):
    """Class 0 lies at the right of the map, where the angle of its place is 0."""
    part(page, "map").get_by_role("radio", name="lasso").check(force=True)
    drag(page, [(0.75, 0.35), (0.99, 0.35), (0.99, 0.65), (0.75, 0.65)])
    targets, _ = marked(page)
    assert 20 < targets < 150 and counted(page)[1] == targets
    shown = part(page, "gallery").get_by_role("listitem").all_inner_texts()
    assert shown and all("label class 0" in text for text in shown)


def test_a_click_an_empty_box_and_the_escape_key_clear_the_marks(page):
    """The middle of the map is empty."""
    for clear in (
        lambda: drag(page, [(0.5, 0.5)]),
        lambda: drag(page, [(0.48, 0.48), (0.52, 0.52)]),
        lambda: page.keyboard.press("Escape"),
    ):
        drag(page, [(0.05, 0.05), (0.95, 0.95)])
        assert marked(page)
        part(page, "map").locator(".map-plot").focus()
        clear()
        assert marked(page) == [] and counted(page) == (24, 600)


def test_the_map_works_by_keyboard(page):
    part(page, "map").locator(".map-plot").focus()
    for key in ["Enter", *["ArrowRight"] * 8, *["+"] * 3, "Enter"]:
        page.keyboard.press(key)
    targets, _ = marked(page)
    assert 5 < targets < 200 and counted(page)[1] == targets


def test_the_map_is_drawn_in_each_colouring(page):
    pictures = set()
    for name in ("class", "domain", "chosen", "right or wrong (oracle)"):
        part(page, "map").get_by_role("radio", name=name, exact=True).check(force=True)
        pictures.add(part(page, "map").locator("canvas").first.evaluate("canvas => canvas.toDataURL()"))
    choose(page, "map", "Highlight", "class 3")
    pictures.add(part(page, "map").locator("canvas").first.evaluate("canvas => canvas.toDataURL()"))
    assert len(pictures) == 5


def test_the_tooltip_names_a_point(page, data):
    at = box(page)
    tooltip = part(page, "map").locator(".tooltip")
    for step in range(60):
        page.mouse.move(at["x"] + at["width"] * (0.75 + step / 400), at["y"] + at["height"] / 2)
        if tooltip.is_visible():
            break
    text = tooltip.inner_text()
    assert re.search(r"(label|class)\s+class \d", text) and ("rendered" in text or "mnist" in text)


def swipe(page, places):
    """Drag a finger over the map. Places are shares of its width and height."""
    at = box(page)
    session = page.context.new_cdp_session(page)
    for number, (x, y) in enumerate(places):
        point = {"x": at["x"] + x * at["width"], "y": at["y"] + y * at["height"]}
        kind = "touchMove" if number else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_a_finger_scrolls_over_the_map_until_it_is_told_to_mark(open_page, file):
    page = open_page(file, width=390, touch=True)
    diagonal = [(0.05 + step / 10, 0.05 + step / 10) for step in range(10)]
    assert part(page, "map").get_by_role("radio", name="look").is_checked()
    swipe(page, diagonal)
    assert marked(page) == []
    part(page, "map").get_by_role("radio", name="lasso").check()
    swipe(page, [(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95)])
    assert marked(page)[0] > 300
    part(page, "map").get_by_role("radio", name="box").check()
    swipe(page, [(0.6, 0.3), (0.8, 0.5), (0.95, 0.7)])
    assert 20 < marked(page)[0] < 150 and page.said == []


# A run that is not finished


def test_a_running_page_loads_again_and_keeps_its_state(open_page, data, tmp_path):
    page = open_page(write_page(tmp_path / "run.html", data | {"running": {"reload_seconds": 1}}))
    page.evaluate("window.before = true")
    choose(page, "gallery", "Label", "class 2")
    page.get_by_role("slider").press("Home")
    part(page, "class-table").get_by_role("button", name="selected").click()
    page.evaluate("window.scrollTo(0, 700)")
    page.evaluate("document.activeElement.blur()")
    page.wait_for_function("window.before === undefined && document.documentElement.dataset.ready === 'true'")
    assert page.get_by_role("slider").input_value() == "0"
    assert part(page, "gallery").get_by_label("Label", exact=True).input_value() == "2"
    head = part(page, "class-table").get_by_role("columnheader", name="selected")
    assert head.get_attribute("aria-sort") == "descending" and page.evaluate("window.scrollY") == 700
    assert page.said == []


def test_a_running_page_waits_for_a_busy_reader(open_page, data, tmp_path):
    page = open_page(write_page(tmp_path / "run.html", data | {"running": {"reload_seconds": 1}}))
    page.evaluate("window.before = true")
    part(page, "class-table").get_by_label("Search classes").focus()
    page.wait_for_timeout(2300)
    assert page.evaluate("window.before")
    page.evaluate("document.activeElement.blur()")
    page.wait_for_function("window.before === undefined")
