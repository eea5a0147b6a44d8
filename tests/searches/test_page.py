"""The page of a search, from trials made up by hand."""

import re

import numpy as np
import pytest

from uda.searches.page import write_page
from uda.searches.state import SearchState
from uda.searches.trials import Trial, best_of

SPACE = {
    "source.optim.lr": {"low": 0.001, "high": 0.3, "log": True},
    "self_training.rounds": {"low": 2, "high": 8},
    "self_training.portion.max": {"low": 0.3, "high": 1.0},
    "self_training.selector": ["softmax", "avc", "margin", "entropy", "energy"],
    "self_training.batch": [{"mixed": 32}, {"source": 32, "selected": 64}],
}


def make_state(folder, count=14, wanted=20):
    """A search with finished, pruned, failed and running trials, and their oracle accuracies."""
    rng = np.random.default_rng(0)
    state = SearchState("digits_avh", SPACE, wanted, folder=folder, overrides=["source.epochs=2"])
    for number in range(count):
        values = {
            "source.optim.lr": round(float(10 ** rng.uniform(-3, -0.6)), 5),
            "self_training.rounds": int(rng.integers(2, 9)),
            "self_training.portion.max": round(float(rng.uniform(0.3, 1)), 3),
            "self_training.selector": SPACE["self_training.selector"][number % 5],
            "self_training.batch": SPACE["self_training.batch"][number % 2],
        }
        kind = "pruned" if number in (5, 8) else "failed" if number == 6 else "finished"
        scores = [] if kind == "failed" else [0.5, float(rng.uniform(0.5, 2))]
        validators = {name: float(rng.uniform()) for name in ("im", "snd", "bnm")} if scores else {}
        error = "the loss is <nan> at step 3" if kind == "failed" else None
        state.trials.append(Trial(number, values, kind, scores, validators, 12.0, error))
    state.trials.append(Trial(count, dict.fromkeys(SPACE)))
    oracle = {trial.number: float(rng.uniform(0.3, 0.9)) if trial.scores else None for trial in state.trials}
    return state, oracle


def page_of(folder, oracle=True, **options):
    state, known = make_state(folder, **options)
    write_page(state, best_of(state.trials), known if oracle else dict.fromkeys(known))
    return state, known, (folder / "search.html").read_text(encoding="utf-8")


def rows_of(page, label):
    table = page.partition(f'aria-label="{label}"')[2].partition("</table>")[0]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]


def test_the_table_has_all_trials_and_the_figures_those_with_scores(tmp_path):
    state, _, page = page_of(tmp_path)
    rows = rows_of(page, "Table of the trials")[1:]
    assert len(rows) == 15 and [row[2] for row in rows][5:7] == ["ended early", "failed"]
    assert rows[14][2] == "not finished"
    best = best_of(state.trials)
    assert [row for row in rows if "best" in row[0]] == [rows[best.number]]
    assert page.count("<svg") == 7, "history, five settings, accuracy by score"
    assert "{source: 32, selected: 64}" in page and "not finished: 14 of 20" in page
    assert "the loss is &lt;nan&gt; at step 3" in page and "<nan>" not in page
    assert "http" not in re.sub(r"xmlns[^>]*", "", page.partition("<main>")[2].partition("</main>")[0])


def test_what_needs_labels_is_marked_and_missing_without_them(tmp_path):
    state, known, page = page_of(tmp_path)
    best = best_of(state.trials)
    for head in ("accuracy, %", "share of the gain, %", "rank correlation"):
        assert f'{head} <abbr class="oracle"' in page
    assert f"{100 * known[best.number]:.2f} %" in page
    verdicts = rows_of(page, "What each validator would have chosen")
    bound = max((share, n) for n, share in known.items() if share and state.trials[n].state == "finished")
    assert verdicts[-1][1:3] == [str(bound[1]), f"{100 * bound[0]:.2f}"]
    _, _, blind = page_of(tmp_path / "blind", oracle=False)
    assert "abbr class" not in blind.partition("<main>")[2] and "What each validator" not in blind


def test_a_search_without_a_finished_trial_has_a_page(tmp_path):
    _, _, page = page_of(tmp_path, count=0)
    assert "No trial is finished yet." in page and "best.yaml" not in page


@pytest.mark.parametrize(("lr", "told"), [(0.29, True), (0.1, False), (0.00101, True)])
def test_a_best_value_at_the_end_of_its_range_is_told(lr, told, tmp_path):
    """The range is logarithmic, from 0.001 to 0.3; a twentieth of it is a factor of 1.33."""
    state, known = make_state(tmp_path)
    best = best_of(state.trials)
    best.values.update({"source.optim.lr": lr, "self_training.rounds": 5, "self_training.portion.max": 0.6})
    write_page(state, best, known)
    page = (tmp_path / "search.html").read_text(encoding="utf-8")
    assert ("at the end of its range for: source.optim.lr." in page) == told
