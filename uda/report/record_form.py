"""The form of the records of reports. Files may be damaged or of another version, so pages do not trust them."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uda.core.errors import UserError

ByClass = dict[str, float | None]
#: What older versions of uda did not write, and what stands for it.
DEFAULTS: Mapping[str, Any] = {
    "class_mean": None, "overall": None, "accuracy": None, "validators": {}, "warnings": [], "loss": None,
    "steps": None, "seconds": None,
}  # fmt: skip


class _Form(BaseModel):
    """Names of entries that a page reads, and their types. There may be more."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Unknown(_Form):
    images: int
    auroc_confidence: float | None
    auroc_avc: float | None


class _Accuracy(_Form):
    per_class: ByClass
    confusion: list[list[int]]
    overall: float | None
    ece: float | None
    domains: dict[str, ByClass] | None = None
    unknown: _Unknown | None = None


class _Model(_Form):
    class_mean: float | None = None
    overall: float | None = None
    accuracy: _Accuracy | None = None
    validators: dict[str, float | None] = {}
    warnings: list[str] = []
    predicted_per_class: dict[str, int] = {}
    source_per_class: dict[str, int] = {}
    effective_classes: float = 0
    loss: float | None = None
    steps: int | None = None
    seconds: float | None = None


class _Report(_Model):
    round: int


class _Overlap(_Form):
    both: int
    only_selector: int
    only_softmax: int
    tp_rate_only_selector: float | None
    tp_rate_only_softmax: float | None


class _Choice(_Report):
    portion: float
    selected: int
    selected_per_class: dict[str, int] = Field(min_length=1)
    thresholds: ByClass = Field(min_length=1)
    tp_rate: float | None
    tp_rate_per_class: ByClass = Field(min_length=1)
    avh: float | None
    avc: float | None
    confidence: float | None
    feature_norm: float | None
    overlap: _Overlap
    avh_per_class: ByClass = {}
    avc_per_class: ByClass = {}
    confidence_per_class: ByClass = {}
    feature_norm_per_class: ByClass = {}


class _Branch(_Form):
    folder: str
    score: float | None
    final: dict[str, Any]
    label_free_choice: dict[str, Any]
    steps: int
    seconds: float
    scores: list[float | None] = Field(min_length=1)
    class_means: list[float | None] = Field(min_length=1)


class _Selectors(_Form):
    kept: str
    validator: str
    runs: dict[str, _Branch]
    steps: int
    seconds: float


class _Hardness(_Form):
    mean: float | None
    histogram: list[int]


class _Seen(_Form):
    accuracy: _Accuracy
    hardness: _Hardness


class _Generalization(_Report):
    accuracy: _Accuracy
    stage: int
    steps: int
    overall: float
    validation: float
    seen: dict[str, _Seen]
    hardness: _Hardness


def completed(name: str, record: Mapping[str, Any], number: int | None = None) -> dict[str, Any]:
    """A record in which what an older version did not write has its default.

    Args:
        name: name of its file, for messages.
        record: content of the file.
        number: number of the report; None for the source model.

    Raises:
        UserError: the record is none of this report, or entries of it are missing or of another type.
    """
    form = _Model if number is None else _Choice if "portion" in record else _Report
    form = _Generalization if "seen" in record else form
    try:
        form.model_validate({**record, "thresholds": record.get("lambda")})
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])).replace("thresholds", "lambda")
        raise UserError(f"{name} is not a record of a report (see its entry '{place}')") from None
    if number is not None and record["round"] != number:
        raise UserError(f"{name} is of report {record['round']}")
    confusion = (record.get("accuracy") or {}).get("confusion", [])
    sizes = {*(len(names) for names in _names(record)), *map(len, (confusion, *confusion) if confusion else ())}
    if len(sizes) > 1:
        raise UserError(f"{name} has figures of {' and of '.join(map(str, sorted(sizes)))} classes")
    if form is _Generalization:  # no version left anything out
        return dict(record)
    return {**record, **{key: value for key, value in DEFAULTS.items() if key not in record}}


def checked_choice(choice: Any) -> Mapping[str, Any]:
    """The choice among several selectors. Raises UserError if it does not have the form of one."""
    try:
        form = _Selectors.model_validate(choice)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"selectors in results.json is not a choice of a selector (see its entry '{place}')") from None
    if form.kept not in form.runs:
        raise UserError(f"selectors in results.json has no run of '{form.kept}', which it keeps")
    return choice


def classes_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names of a record; none if it has no figures by class."""
    return next(_names(record), ())


def _names(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    of_accuracy = (record.get("accuracy") or {}).get("per_class")
    keys = ["predicted_per_class", "source_per_class", "selected_per_class", "lambda", "tp_rate_per_class"]
    keys += [f"{name}_per_class" for name in ("avh", "avc", "confidence", "feature_norm")]
    for found in (of_accuracy, *(record.get(key) for key in keys)):
        if found:
            yield tuple(found)
