"""A table as Markdown, from its CSVs and from nothing else."""

import statistics
from collections.abc import Sequence

from uda.errors import UserError
from uda.tables.comparison import (
    LEAST_POINTS,
    Difference,
    Record,
    choice_of,
    difference_to_reference,
    judge,
    last_reports,
    mean_over_pairs,
    names_of,
    numbers,
    pairs_of,
    runs_of,
    select,
    validators_of,
)
from uda.tables.ledger import INNER


def mean_and_spread(values: Sequence[float], percent: bool = True) -> str:
    """`93.0 ± 3.6`: mean and sample standard deviation; one value has no deviation, none is an empty text."""
    if not values:
        return ""
    scale, digits = (100, 1) if percent else (1, 3)
    values = [scale * value for value in values]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def difference_text(difference: Difference | None) -> str:
    """`+1.2 [+0.4, +2.0], n = 5` in percentage points; empty where there is nothing to compare."""
    if difference is None:
        return ""
    interval = ""
    if difference.interval:
        low, high = difference.interval
        interval = f" [{100 * low:+z.1f}, {100 * high:+z.1f}]"
    return f"{100 * difference.mean:+z.1f}{interval}, n = {difference.count}"


def steps_text(records: Sequence[Record]) -> str:
    """Training steps of a run, or from the fewest to the most."""
    steps = sorted({int(record["steps"]) for record in records if record["steps"]})
    if not steps:
        return ""
    return f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"


def to_markdown(records: Sequence[Record], reference: str | None = None) -> str:
    """Class mean a pair over seeds, and the difference to the reference row with its interval."""
    rows, pairs = names_of(records), pairs_of(records)
    several, compared = len(pairs) > 1, reference in rows
    head = [f"{source} to {target}" for source, target in pairs]
    head += ["mean"] if several else ["overall", "label-free choice", "oracle best"]
    head += ["steps"] + [f"less {reference}"] * compared
    interval = (
        f" `less {reference}`: mean difference in points of the n runs of equal pair and seed, with the paired "
        "bootstrap interval of 95 %."
    )
    lines = [
        "Class mean at the end of the run in %, mean ± standard deviation over seeds." + interval * compared,
        "",
        f"| Method | seeds | {' | '.join(head)} |",
        f"|---|---|{'---|' * len(head)}",
    ]
    for row in rows:
        own = select(records, row)
        cells = [mean_and_spread(numbers(select(records, row, pair), "class_mean")) for pair in pairs]
        if several:
            cells.append(mean_and_spread(mean_over_pairs(records, row)))
        else:
            cells += [mean_and_spread(numbers(own, key)) for key in ("overall", "label_free", "oracle_best")]
        cells.append(steps_text(own))
        if compared:
            cells.append(difference_text(difference_to_reference(records, row, reference)))
        seeds = len({record["seed"] for record in own})
        lines.append(f"| {row} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def inner_markdown(records: Sequence[Record]) -> str:
    """The inner metrics of the last round's selection, a row a method that selects; empty where none does."""
    chosen = [row for row in names_of(records) if numbers(select(records, row), "tp_rate")]
    if not chosen:
        return ""
    lines = [
        "Inner metrics of the selected images, first column apart in the last round (TP rates are oracle figures):",
        "",
        "| Method | TP rate, first round | TP rate | AVH | AVC | confidence | norm of x |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in chosen:
        own = select(records, row)
        cells = [mean_and_spread(numbers(own, key), percent=False) for key in ("tp_rate_round0", *INNER)]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def validator_markdown(reports: Sequence[Record]) -> str:
    """How well each validator ranks epochs and methods, and what its choice loses against the oracle's."""
    validators, runs, groups = validators_of(reports), runs_of(reports), last_reports(reports)
    epochs = [run for run in runs if len(run) > 1]
    lines = [
        "How well label-free scores rank models, by Spearman's rho with the class mean (oracle), and how many points "
        "of it their choice loses against the best (oracle). Epochs: the reports of a run, mean over runs. Methods: "
        "the last models of one pair and seed, mean over these.",
        "",
        "| Validator | rho, epochs | points lost | rho, methods | points lost |",
        "|---|---|---|---|---|",
    ]
    for validator in validators:
        cells = []
        for judgement in (judge(validator, epochs), judge(validator, groups)):
            rho, lost = judgement.correlations, judgement.losses
            cells.append(f"{statistics.mean(rho):+.2f}, n = {len(rho)}" if rho else "n/a")
            cells.append(f"{100 * statistics.mean(lost):.1f}, n = {len(lost)}" if lost else "n/a")
        lines.append(f"| {validator} | {' | '.join(cells)} |")
    losses = [max(numbers(run, "class_mean")) - float(run[-1]["class_mean"]) for run in epochs]
    if losses:
        lines.append(f"| the last report | | {100 * statistics.mean(losses):.1f}, n = {len(losses)} | | |")
    lines += [
        "",
        f"A correlation needs {LEAST_POINTS} models that are not all equal; n/a where there are none. Class mean in %, "
        "mean over pairs and seeds, of the last report and of those that are chosen:",
        "",
        f"| Method | runs | last | {' | '.join(validators)} | oracle best |",
        f"|---|---|---|{'---|' * len(validators)}---|",
    ]
    for row in names_of([run[0] for run in epochs]):
        own = [run for run in epochs if run[0]["row"] == row]
        reached = [[float(run[-1]["class_mean"]) for run in own]]
        for validator in validators:
            scored = [[report for report in run if report[validator]] for run in own]
            reached.append([float(choice_of(validator, run)["class_mean"]) for run in scored if run])
        reached.append([max(numbers(run, "class_mean")) for run in own])
        cells = [f"{100 * statistics.mean(values):.1f}" if values else "n/a" for values in reached]
        lines.append(f"| {row} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def published_markdown(records: Sequence[Record]) -> str:
    """Figures that others published, as they printed them: per-class accuracy and class mean in %."""
    classes = published_classes(records)
    where = ", ".join(dict.fromkeys(record["published_in"] for record in records))
    lines = [
        f"Published, not measured here: accuracy by class and class mean in %, from {where}.",
        "",
        f"| Method (published) | {' | '.join(classes)} | mean |",
        f"|---|{'---|' * (len(classes) + 1)}",
    ]
    lines += [f"| {r['method']} | {' | '.join(r[key] for key in (*classes, 'mean'))} |" for r in records]
    return "\n".join(lines) + "\n"


def published_classes(records: Sequence[Record]) -> list[str]:
    """The columns of a table of published figures that are classes."""
    return [key for key in records[0] if key not in ("method", "mean", "published_in")]


def has_place(document: str, name: str) -> bool:
    """Whether a document has a block for this table."""
    return f"<!-- table {name} -->" in document


def insert_markdown(document: str, name: str, markdown: str) -> str:
    """`document` with the block between `<!-- table NAME -->` and `<!-- end NAME -->` replaced.

    Raises:
        UserError: the two marks are not there, once each and in this order.
    """
    begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise UserError(f"no place for table '{name}': the document needs the lines {begin} and {end}, once each")
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n{markdown}{end}{rest.partition(end)[2]}"
