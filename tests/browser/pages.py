"""Synthetic pages of runs: data as Python writes it, in a shell that has the places of the parts and nothing else."""

import base64
import io
import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from uda.core.resources import CHECKOUT

PAGE = CHECKOUT / "uda" / "report" / "page"
BINS = 24
OTHER, UNKNOWN = -2, -1


def page_data(
    classes: int | Sequence[str] = 6,
    rounds: int = 4,
    images: int = 600,
    *,
    pictures: int = 120,
    points: int = 800,
    running: int | None = None,
    seed: int = 0,
) -> dict:
    """The data of a page of a run that chooses with `avc` and gets better from round to round."""
    names = [f"class {number}" for number in range(classes)] if isinstance(classes, int) else list(classes)
    rng = np.random.default_rng(seed)
    truth = rng.integers(len(names), size=images)
    truth[:: max(images // 8, 1)] = UNKNOWN
    truth[1 :: max(images // 5, 1)] = OTHER
    states = [_state(rng, truth, len(names), number, rounds) for number in range(rounds)]
    states.append(_state(rng, truth, len(names), rounds, rounds) | {"chosen": np.zeros(images, int)})
    for before, state in zip([states[0], *states], states, strict=False):
        state["flipped"] = (state["label"] != before["label"]).astype(int)
    titles = [f"round {number}" for number in range(rounds)] + ["final"]
    sample = np.sort(rng.choice(images, min(pictures, images), replace=False))
    truths = [*names, "another class", "not labelled"]
    return {
        "version": 1,
        "classes": names,
        "labelled": True,
        "selector": "avc",
        "unit": "round",
        "words": {"target": "target", "source": "source"},
        "running": running and {"reload_seconds": running},
        "curves": _curves(rng, rounds),
        "selection": {
            "bins": BINS,
            "rounds": [_selection(rng, states[n], truth, names, n) for n in range(rounds)],
        },
        "states": [
            {
                "name": title,
                "title": f"Labels of {title}",
                "chooses": title != "final",
                "cube": _cube(state, truth, truths),
            }
            for title, state in zip(titles, states, strict=True)
        ],
        "truths": truths,
        "truth_is_class": True,
        "pictures": _pictures(rng, sample, states, truth, len(names)),
        "map": _map(rng, points, states[-1]["label"], states[-2]["chosen"], truth, len(names)),
        "confusion": {"state": rounds, "counts": _confusion(states[-1]["label"], truth, len(names))},
    }


def _state(rng, truth, classes, number, rounds):
    wrong = rng.random(len(truth)) < 0.5 - 0.35 * number / rounds + 0.08 * np.sin(3 * truth)
    label = np.where(wrong | (truth < 0), rng.integers(classes, size=len(truth)), truth)
    easy = 0.006 * np.cos(label)  # classes differ
    score = np.clip(rng.normal(0.124 + 0.008 * number / rounds + easy - 0.018 * wrong, 0.012), 0.06, 0.19)
    chosen = (score > 0.135 - 0.01 * number / rounds) * 2
    chosen = chosen + (rng.random(len(truth)) < 0.3)
    return {"label": label, "score": score, "avh": 1 - score + rng.normal(0, 0.01, len(truth)), "chosen": chosen}


def _verdicts(label, truth):
    """0 right, 1 wrong, 2 not labelled."""
    return np.where(truth == UNKNOWN, 2, np.where(truth == label, 0, 1))


def _truth_index(truth, classes):
    return np.where(truth == UNKNOWN, classes + 1, np.where(truth == OTHER, classes, truth))


def _cube(state, truth, truths):
    place = _truth_index(truth, len(truths) - 2)
    keys = ((state["label"] * len(truths) + place) * 4 + state["chosen"]) * 2 + state["flipped"]
    return [int(number) for pair in sorted(Counter(keys.tolist()).items()) for number in pair]


def _curves(rng, rounds):
    x = list(range(rounds))

    def rise(top):
        return [round(float(v), 1) for v in top - 30 * np.exp(-np.arange(rounds) / 4) + rng.normal(0, 1, rounds)]

    def shares():
        return [round(float(v), 4) for v in rng.random(rounds)]

    def curve(name, title, ylabel, series, baselines=()):
        lines = [{"name": line, "values": values} for line, values in series.items()]
        words = {"id": name, "title": title, "ylabel": ylabel, "xlabel": "round"}
        return words | {"x": x, "series": lines, "baselines": list(baselines)}

    mean = rise(92)
    if rounds > 2:
        mean[1] = None
    return [
        curve("class-mean", "Accuracy (oracle)", "%", {"class mean": mean, "overall": rise(94)},
              [{"name": "zero-shot", "value": 58.2}, {"name": "source", "value": 61.3}]),
        curve("tp", "TP rate (oracle)", "share", {name: shares() for name in ("avc", "softmax", "norm")}),
        curve("selected", "Selected", "images",
              {"softmax too": [100 * n + 40 for n in x], "avc only": [7 * n for n in x]}),
    ]  # fmt: skip


def _selection(rng, state, truth, names, number):
    edges = np.linspace(0.06, 0.19, BINS + 1)
    classes = []
    for label in range(len(names)):
        mine = state["label"] == label
        selected = mine & (state["chosen"] >= 2)
        verdict = _verdicts(state["label"], truth)
        counts = [np.histogram(state["score"][mine & (verdict == which)], edges)[0].tolist() for which in range(3)]
        mean = lambda values: float(values[selected].mean()) if selected.any() else None  # noqa: B023, E731
        classes.append(
            {
                "images": int(mine.sum()),
                "selected": int(selected.sum()),
                "lambda": float(state["score"][selected].min()) if selected.any() else None,
                "tp_rate": mean(verdict == 0),
                "avh": mean(state["avh"]),
                "avc": mean(state["score"]),
                "confidence": mean(0.5 + 3 * state["score"]),
                "norm": mean(20 + 10 * state["score"]),
                "right": counts[0],
                "wrong": counts[1],
                "unknown": counts[2],
            }
        )
    return {"round": number, "range": [0.06, 0.19], "classes": classes}


def _jpeg(rng):
    pixels = np.kron(rng.integers(60, 230, (4, 4, 3)), np.ones((7, 7, 1))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=70)
    return base64.b64encode(buffer.getvalue()).decode()


def _pictures(rng, sample, states, truth, classes):
    jpegs = [_jpeg(rng) for _ in range(12)]
    return {
        "jpegs": [jpegs[number % 12] for number in range(len(sample))],
        "paths": [f"photos/{'deep/' * (row % 4)}{row:06d}.jpg" for row in sample.tolist()],
        "rows": sample.tolist(),
        "truth": _truth_index(truth, classes)[sample].tolist(),
        "states": [
            {
                "label": state["label"][sample].tolist(),
                "score": state["score"][sample].round(5).tolist(),
                "avh": state["avh"][sample].round(5).tolist(),
                "chosen": state["chosen"][sample].tolist(),
                "flipped": state["flipped"][sample].tolist(),
                "threshold_ratio": (state["score"] / 0.13)[sample].round(4).tolist() if state["chosen"].any() else None,
            }
            for state in states
        ],
    }


def _base64(values, kind):
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()


def _map(rng, points, label, chosen, truth, classes):
    """Half of the points are of the source; the others are target images, as many as there are."""
    rows = np.arange(min(points // 2, len(label)))
    sources = points - len(rows)
    labels = np.concatenate([rng.integers(classes, size=sources), label[rows]])
    angle = 2 * np.pi * labels / classes
    target = np.arange(points) >= sources
    x = 0.5 + 0.33 * np.cos(angle) + rng.normal(0, 0.045, points) + 0.04 * target
    y = 0.5 + 0.33 * np.sin(angle) + rng.normal(0, 0.045, points)
    truths = np.concatenate([labels[:sources], truth[rows]])
    truths = np.where(truths == UNKNOWN, 65535, np.where(truths == OTHER, 65534, truths))
    return {
        "method": "PCA",
        "count": points,
        "x": _base64(np.clip(x, 0, 1) * 65535, "<u2"),
        "y": _base64(np.clip(y, 0, 1) * 65535, "<u2"),
        "label": _base64(labels, "<u2"),
        "truth": _base64(truths, "<u2"),
        "domain": _base64(target, "u1"),
        "domains": [{"name": "rendered", "target": False}, {"name": "mnist", "target": True}],
        "chosen": _base64(np.concatenate([np.full(sources, 2), chosen[rows] >= 2]), "u1"),
        "row": _base64(np.concatenate([np.full(sources, -1), rows]), "<i4"),
    }


def _confusion(label, truth, classes):
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (truth[truth >= 0], label[truth >= 0]), 1)
    return counts.tolist()


# The shell: what the template of a run writes, reduced to what the script needs.


def _head(words):
    return "<thead><tr>" + "".join(f'<th scope="col">{word}</th>' for word in words) + "</tr></thead>"


def _scroll(label, table):
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def _class_table(data):
    last = data["selection"]["rounds"][-1]["classes"]
    rows = []
    for name, figures in zip(data["classes"], last, strict=True):
        cells = [figures["images"], figures["selected"], figures["lambda"]]
        shown = ["" if value is None else f"{value:.4g}" for value in cells]
        tds = "".join(
            f'<td data-value="{"" if v is None else v}">{text}</td>' for v, text in zip(cells, shown, strict=True)
        )
        rows.append(f'<tr><th scope="row"><bdi title="{escape(name)}">{escape(name)}</bdi></th>{tds}</tr>')
    head = _head(["class", "images", "selected", "lambda"])
    table = (
        f'<table class="names" data-sortable data-filter="Search classes">{head}<tbody>{"".join(rows)}</tbody></table>'
    )
    return f'<h2>By class</h2><div data-part="class-table">{_scroll("Table of the classes", table)}</div>'


def _heat(data):
    measures = [("tp_rate", "TP rate (oracle)"), ("selected", "Selected"), ("images", "Pseudo-labels")]
    rounds = data["selection"]["rounds"]
    blocks = []
    for measure, title in measures:
        most = max(of[measure] or 0 for figures in rounds for of in figures["classes"]) or 1
        rows = []
        for number, name in enumerate(data["classes"]):
            values = [figures["classes"][number][measure] for figures in rounds]
            tds = "".join(
                "<td></td>" if v is None else f'<td data-value="{v}" style="--share:{v / most:.3f}">{v:.3g}</td>'
                for v in values
            )
            rows.append(f'<tr><th scope="row"><bdi title="{escape(name)}">{escape(name)}</bdi></th>{tds}</tr>')
        head = _head(["class", *(str(figures["round"]) for figures in rounds)])
        table = f'<table class="names" data-sortable>{head}<tbody>{"".join(rows)}</tbody></table>'
        blocks.append(
            f'<div data-measure="{measure}" data-title="{title}"><h4>{title}</h4>{_scroll(title, table)}</div>'
        )
    return f'<h3>Classes over the rounds</h3><div data-part="heat">{"".join(blocks)}</div>'


def _confusion_table(data):
    if not data["confusion"]:
        return ""
    names = [f'<bdi title="{escape(name)}">{escape(name)}</bdi>' for name in data["classes"]]
    rows = []
    for truth, counts in enumerate(data["confusion"]["counts"]):
        total = max(sum(counts), 1)
        tds = "".join(
            f'<td data-truth="{truth}" data-label="{label}"{"" if truth == label else " class=wrong"}'
            f' style="--share:{count / total:.3f}">{count}</td>'
            for label, count in enumerate(counts)
        )
        rows.append(f'<tr><th scope="row">{names[truth]}</th>{tds}</tr>')
    table = f'<table class="names">{_head(["true class", *names])}<tbody>{"".join(rows)}</tbody></table>'
    return f'<h2>Confusion</h2><div data-part="confusion">{_scroll("Confusion", table)}</div>'


def _fallback_gallery(data):
    if not data["pictures"]:
        return '<div class="fallback">There are no pictures.</div>'
    pictures, state = data["pictures"], data["pictures"]["states"][-1]
    items = [
        f'<li><img src="data:image/jpeg;base64,{pictures["jpegs"][n]}" alt="Image {escape(pictures["paths"][n])}">'
        f"<div>label <strong>{escape(data['classes'][state['label'][n]])}</strong></div></li>"
        for n in range(min(24, len(pictures["paths"])))
    ]
    return f'<div class="fallback"><ul class="gallery">{"".join(items)}</ul></div>'


PICTURE = (
    '<svg viewBox="0 0 100 50" role="img" aria-label="A drawing"><path d="M5 45L95 5" stroke="#2b2f36"/>'
    '<text x="10" y="20" style="font: 8px sans-serif; fill: #2b2f36">static</text></svg>'
)


def as_json(data: dict) -> str:
    """The data as text for a script element, which `<` could end."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def page_html(data: dict) -> str:
    """The page as one text of HTML."""
    part = {name: (PAGE / name).read_text(encoding="utf-8") for name in ("uPlot.min.css", "report.css", "report.js")}
    uplot = (PAGE / "uPlot.iife.min.js").read_text(encoding="utf-8")
    curves = "".join(
        f'<figure class="panel" data-curve="{curve["id"]}"><h3>{curve["title"]}</h3>'
        f'<div class="fallback">{PICTURE}</div></figure>'
        for curve in data["curves"]
    )
    return f"""<!DOCTYPE html>
<html lang="en" class="no-script">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>A run</title>
<style>{part["uPlot.min.css"]}</style>
<style>{part["report.css"]}</style>
</head>
<body>
<header><h1>A run <span class="soft">seed 0</span></h1></header>
<main>
<h2>Over the rounds</h2>
<div data-part="curves" class="panels">{curves}</div>
<h2>What was selected</h2>
<div data-part="selection"><div class="fallback panel narrow">{PICTURE}</div></div>
{_class_table(data)}
{_heat(data)}
{_confusion_table(data)}
<h2>Pictures</h2>
<div data-part="gallery">{_fallback_gallery(data)}</div>
<h2>Map</h2>
<div data-part="map"><div class="fallback panel narrow">{PICTURE}</div></div>
</main>
<footer><p>The end.</p></footer>
<script type="application/json" id="page-data">{as_json(data)}</script>
<script>{uplot}</script>
<script>{part["report.js"]}</script>
</body>
</html>
"""


def write_page(path: Path, data: dict) -> Path:
    """Write the page of `data` to `path`, and return the path."""
    path.write_text(page_html(data), encoding="utf-8")
    return path
