"""A table as Markdown, made only from its CSVs."""

import statistics
from collections.abc import Callable, Sequence

from uda.core.statistics import LEAST_SEEDS, PairedDifference
from uda.report.markdown import markdown_table
from uda.tables.comparison import (
    LEAST_POINTS,
    Record,
    by_class,
    choice_of,
    difference_to_reference,
    last_reports,
    mean_over_pairs,
    names_of,
    numbers,
    pairs_of,
    quality_of,
    runs_of,
    select,
    validators_of,
)
from uda.tables.definition import MEASURES, name_of
from uda.tables.ledger import INNER

TO_A_TARGET = "Class mean at the end of the run in %, mean ± standard deviation over seeds."
LEFT_OUT = (
    "Accuracy at the end of the run in %, on the unseen domain of the column, mean ± standard deviation over seeds. "
    "The averages are over all domains: for the last report, for the report that is best on the held-out images of the "
    "seen domains, and for the best report (oracle)."
)
AGREEMENT_NOTE = " (`agreement` compares a report with the one before, so the first report has no score)"


def mean_and_spread(values: Sequence[float], percent: bool = True) -> str:
    """`93.0 ± 3.6`: mean and sample standard deviation. One value has no deviation; without values it is empty."""
    if not values:
        return ""
    scale, digits = (100, 1) if percent else (1, 3)
    values = [scale * value for value in values]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def difference_text(difference: PairedDifference | None) -> str:
    """`+1.2 [+0.4, +2.0], n = 5` in percentage points; empty without a difference."""
    if difference is None:
        return ""
    interval = ""
    if difference.interval:
        low, high = difference.interval
        interval = f" [{100 * low:+z.1f}, {100 * high:+z.1f}]"
    return f"{100 * difference.mean:+z.1f}{interval}, n = {difference.count}"


def steps_text(records: Sequence[Record]) -> str:
    """Training steps of the runs, as one number or as a range."""
    steps = sorted({int(record["steps"]) for record in records if record["steps"]})
    if not steps:
        return ""
    return f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"


#: Title of a column, and a function from the name of a row to the text of its cell.
Column = tuple[str, Callable[[str], str]]


def columns_of(records: Sequence[Record], measure: str = "class_mean") -> list[Column]:
    """Columns with the measure of the rows: one per pair of domains, and means over all pairs.

    Some means are of other choices than the last report: the validation or label-free choice, and the oracle best.
    """

    def of_pair(pair: tuple[str, str]) -> Column:
        return name_of(pair), lambda row: mean_and_spread(numbers(select(records, row, pair), measure))

    def over_pairs(title: str, key: str) -> Column:
        return title, lambda row: mean_and_spread(mean_over_pairs(records, row, key))

    pairs = pairs_of(records)
    columns = [of_pair(pair) for pair in pairs]
    if measure == "overall":
        columns.append(over_pairs("average", measure))
        columns.append(over_pairs("average, validation's choice", "validation_choice"))
        columns.append(over_pairs("average, oracle best", "oracle_best"))
    elif len(pairs) > 1:
        columns.append(over_pairs("mean", measure))
        more = {"label_free": "mean, label-free choice", "oracle_best": "mean, oracle best"}
        columns += [over_pairs(title, key) for key, title in more.items() if numbers(records, key)]
    return columns


def to_markdown(records: Sequence[Record], reference: str | None = None, measure: str = "class_mean") -> str:
    """The measure of each pair over seeds, and the difference to the reference row with its interval."""
    rows, columns = names_of(records), columns_of(records, measure)
    compared, left_out = reference in rows, measure == "overall"
    if len(columns) == 1:

        def of_all(key: str) -> Callable[[str], str]:
            return lambda row: mean_and_spread(numbers(select(records, row), key))

        more = {"overall": "overall", "label-free choice": "label_free", "oracle best": "oracle_best"}
        columns += [(title, of_all(key)) for title, key in more.items()]
    head = [*(title for title, _ in columns), "steps", *[f"minus {reference}"] * compared]
    interval = (
        f" `minus {reference}`: mean difference in points over the n runs with the same "
        f"{'domain' if left_out else 'pair'} and seed. {_interval('domain' if left_out else 'pair')}"
    )
    lines = []
    for row in rows:
        own = select(records, row)
        cells = [*(text_of(row) for _, text_of in columns), steps_text(own)]
        if compared:
            cells.append(difference_text(difference_to_reference(records, row, reference, measure)))
        lines.append([row, str(len({record["seed"] for record in own})), *cells])
    text = (LEFT_OUT if left_out else TO_A_TARGET) + interval * compared
    return f"{text}\n\n{markdown_table(['Method', 'seeds', *head], lines)}"


def _interval(unit: str) -> str:
    return (
        f"Brackets: 95 % paired bootstrap interval, with seeds drawn within each {unit}; it needs {LEAST_SEEDS} seeds "
        f"per {unit}."
    )


def percent(share: float | None) -> str:
    """A share in per cent, `61.5`; empty if it is unknown."""
    return "" if share is None else f"{100 * share:.1f}"


def classes_markdown(records: Sequence[Record], measure: str = "class_mean") -> str:
    """Accuracy by class, one table per pair, means over seeds, in the paper's form."""
    last = "mean" if measure == "class_mean" else MEASURES[measure]
    blocks = []
    for pair in pairs_of(records):
        classes, rows = by_class(records, pair, measure)
        lines = [[row, *map(percent, [*means, total])] for row, means, total in rows]
        text = f"{name_of(pair)}, % (oracle), means over seeds:"
        blocks.append(f"{text}\n\n{markdown_table(['Method', *classes, last], lines)}")
    return "\n".join(blocks)


def differences_markdown(records: Sequence[Record], reference: str | None = None, measure: str = "class_mean") -> str:
    """Differences of each row to the reference, one column per pair; empty without a reference or with one pair."""
    rows, pairs = names_of(records), pairs_of(records)
    if reference not in rows or len(pairs) < 2:
        return ""
    unit = "domain" if measure == "overall" else "pair"
    lines = []
    for row in rows:
        if row != reference:
            parts = [*([r for r in records if (r["source"], r["target"]) == pair] for pair in pairs), records]
            cells = [difference_text(difference_to_reference(part, row, reference, measure)) for part in parts]
            lines.append([row, *cells])
    text = f"Mean differences to {reference} in points over the n runs with the same {unit} and seed. {_interval(unit)}"
    return f"{text}\n\n{markdown_table([f'Minus {reference}', *map(name_of, pairs), 'all'], lines)}"


def inner_markdown(records: Sequence[Record]) -> str:
    """The inner metrics of the last round's selection, one row per method that selects; empty if none does."""
    chosen = [row for row in names_of(records) if numbers(select(records, row), "tp_rate")]
    if not chosen:
        return ""
    lines = []
    for row in chosen:
        own = select(records, row)
        cells = [mean_and_spread(numbers(own, key), percent=False) for key in ("tp_rate_round0", *INNER)]
        lines.append([row, *cells])
    text = (
        "Inner metrics of the selected images in the last round, mean ± standard deviation over all pairs and seeds. "
        "The first column is that of the first round. TP rates are oracle figures."
    )
    head = ["Method", "TP rate, first round", "TP rate", "AVH", "AVC", "confidence", "norm of x"]
    return f"{text}\n\n{markdown_table(head, lines)}"


def validator_markdown(reports: Sequence[Record], measure: str = "class_mean") -> str:
    """How well each validator ranks epochs and methods, and the points that its choice loses to the oracle's.

    Empty if there is nothing to choose from.
    """
    validators = validators_of(reports, measure)
    scored = [report for report in reports if any(report[validator] for validator in validators)]
    runs, groups = runs_of(scored, measure), last_reports(scored, measure)
    reached_by, left_out = MEASURES[measure], measure == "overall"
    scores = "the accuracy on held-out images of the seen domains ranks" if left_out else "label-free scores rank"
    domains = "unseen domain" if left_out else "pair"
    epochs = [run for run in runs if len(run) > 1]
    if not epochs and all(len(group) < LEAST_POINTS for group in groups):
        return ""
    text = (
        f"How well {scores} models: Spearman's rho with the {reached_by} (oracle). Points lost: {reached_by} of the "
        "best model (oracle) minus that of the validator's choice. Epochs: the reports of a run, mean over runs. "
        f"Methods: the last models of one {domains} and seed, mean over all of these. Only reports with a score count"
        f"{AGREEMENT_NOTE if 'agreement' in validators else ''}."
    )
    lines = []
    for validator in validators:
        cells = []
        for quality in (quality_of(validator, epochs, measure), quality_of(validator, groups, measure)):
            rho, lost = quality.correlations, quality.losses
            cells.append(f"{statistics.mean(rho):+.2f}, n = {len(rho)}" if rho else "n/a")
            cells.append(f"{100 * statistics.mean(lost):.1f}, n = {len(lost)}" if lost else "n/a")
        lines.append([validator, *cells])
    losses = [max(numbers(run, measure)) - float(run[-1][measure]) for run in epochs if len(run) >= LEAST_POINTS]
    if losses:
        lines.append(["the last report", "", f"{100 * statistics.mean(losses):.1f}, n = {len(losses)}", "", ""])
    ranked = markdown_table(["Validator", "rho, epochs", "points lost", "rho, methods", "points lost"], lines)
    note = f"n/a: fewer than {LEAST_POINTS} models, or no correlation because all are equal."
    ranking = f"{text}\n\n{ranked}\n{note}\n"
    if not epochs:
        return ranking
    lines = []
    for row in names_of([run[0] for run in epochs]):
        own = [run for run in epochs if run[0]["row"] == row]
        reached = [[float(run[-1][measure]) for run in own]]
        for validator in validators:
            scores = [[report for report in run if report[validator]] for run in own]
            reached.append([float(choice_of(validator, run)[measure]) for run in scores] if all(scores) else [])
        reached.append([max(numbers(run, measure)) for run in own])
        cells = [f"{100 * statistics.mean(values):.1f}" if values else "n/a" for values in reached]
        lines.append([row, str(len(own)), *cells])
    text = (
        f"{reached_by.capitalize()} in % of the last report and of the report that each validator chooses, mean over "
        f"{domains}s and seeds:"
    )
    return f"{ranking}\n{text}\n\n{markdown_table(['Method', 'runs', 'last', *validators, 'oracle best'], lines)}"


def scores_markdown(reports: Sequence[Record], measure: str = "class_mean") -> str:
    """Score of each validator for the last models of every row, and the row that it would choose; empty without any."""
    validators = validators_of(reports, measure)
    last = [run[-1] for run in runs_of(reports, measure)]
    if not last or not validators:
        return ""
    rows = names_of(last)
    scores = {(row, validator): numbers(select(last, row), validator) for row in rows for validator in validators}
    means = {place: statistics.mean(values) for place, values in scores.items() if values}
    lines = []
    for row in rows:
        cells = []
        for validator in validators:
            mean = means.get((row, validator))
            best = max((means[other, validator] for other in rows if (other, validator) in means), default=None)
            text = "n/a" if mean is None else f"{mean:.3f}"
            cells.append(f"**{text}**" if mean is not None and mean == best else text)
        own = select(last, row)
        lines.append([row, str(len(own)), *cells, mean_and_spread(numbers(own, measure))])
    text = (
        "Validators' scores of the last models, means over runs. The row that a validator chooses is in bold. The "
        f"last column is the {MEASURES[measure]} in %, which the choices do not use:"
    )
    return f"{text}\n\n{markdown_table(['Row', 'runs', *validators, f'{MEASURES[measure]} (oracle)'], lines)}"


def published_markdown(records: Sequence[Record]) -> str:
    """Published figures, as printed there: accuracy by class or by unseen domain, and its mean."""
    classes = published_classes(records)
    where = "; ".join(dict.fromkeys(record["published_in"] for record in records))
    text = f"Published, not measured here: accuracy in % and its mean, as printed in {where}."
    lines = [[r["method"], *(r[key] for key in (*classes, "mean"))] for r in records]
    return f"{text}\n\n{markdown_table(['Method (published)', *classes, 'mean'], lines)}"


def published_classes(records: Sequence[Record]) -> list[str]:
    """The columns of published figures that are classes or unseen domains."""
    return [key for key in records[0] if key not in ("method", "mean", "published_in")]
