"""What a choice among rows of a table is worth, run by run, by a score that needs no target labels."""

import statistics
from collections.abc import Mapping, Sequence

from uda.report.markdown import markdown_table
from uda.tables.comparison import Record, Unit, choice_of, last_reports, mean_difference, validators_of
from uda.tables.definition import MEASURES
from uda.tables.markdown import difference_text, percent

TEXT = (
    "A choice among the final models of {rows}, for each pair and seed: mean {measure} in % (oracle) of the chosen "
    "models over the {count} runs that all of these rows have, and how often each row was chosen. `minus {first}`: "
    "mean difference in points, with its 95 % paired bootstrap interval. A validator chooses without target labels. "
    "The oracle's choice is a bound."
)


def choices_markdown(reports: Sequence[Record], choices: Sequence[Sequence[str]], measure: str) -> str:
    """Markdown of each choice, a list of rows. A choice without common runs is left out."""
    return "\n".join(filter(None, (_choice(reports, rows, measure) for rows in choices)))


def _choice(reports: Sequence[Record], rows: Sequence[str], measure: str) -> str:
    found: dict[Unit, dict[str, Record]] = {}
    for models in last_reports([report for report in reports if report["row"] in rows], measure):
        by_row = {model["row"]: model for model in models}
        if len(by_row) == len(rows):
            found[(models[0]["source"], models[0]["target"]), models[0]["seed"]] = by_row
    if not found:
        return ""
    chosen = {f"always {row}": {unit: models[row] for unit, models in found.items()} for row in rows}
    for validator in validators_of(reports, measure):
        if all(model[validator] for models in found.values() for model in models.values()):
            chosen[validator] = {unit: choice_of(validator, _in_order(models, rows)) for unit, models in found.items()}
    chosen["oracle"] = {unit: choice_of(measure, _in_order(models, rows)) for unit, models in found.items()}
    first = _measures(chosen[f"always {rows[0]}"], measure)
    lines = []
    for name, models in chosen.items():
        reached = _measures(models, measure)
        counts = [str(sum(model["row"] == row for model in models.values())) for row in rows]
        compared = "" if name == f"always {rows[0]}" else difference_text(mean_difference(reached, first))
        lines.append([name, percent(statistics.mean(reached.values())), *counts, compared])
    text = TEXT.format(rows=" and ".join(rows), measure=MEASURES[measure], count=len(found), first=rows[0])
    head = ["Choice by", MEASURES[measure], *(f"chose {row}" for row in rows), f"minus {rows[0]}"]
    return f"{text}\n\n{markdown_table(head, lines)}"


def _in_order(models: Mapping[str, Record], rows: Sequence[str]) -> list[Record]:
    """Models in the order of `rows`: of several equal ones the first is chosen."""
    return [models[row] for row in rows]


def _measures(models: Mapping[Unit, Record], measure: str) -> dict[Unit, float]:
    return {unit: float(model[measure]) for unit, model in models.items()}
