#!/usr/bin/env python3
"""Fill pages of docs/ from the typed config, the registries, the columns of tables and results/bench.json.

python docs/reference.py            write the pages
python docs/reference.py --check    write nothing; exit code 1 if a page is out of date
"""

import argparse
import itertools
import json
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import annotated_types  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

from uda.adaptation.config import AdaptationConfig  # noqa: E402
from uda.adaptation.methods import ADAPTATION_METHODS, UNLABELLED_LOSSES  # noqa: E402
from uda.core.registry import Registry  # noqa: E402
from uda.core.settings import Settings  # noqa: E402
from uda.data.settings import StorageSettings, TransformSettings  # noqa: E402
from uda.evaluation.validators import VALIDATORS  # noqa: E402
from uda.generalization.config import GeneralizationConfig  # noqa: E402
from uda.generalization.methods import GENERALIZATION_METHODS  # noqa: E402
from uda.hardness.dynamics.config import SupervisedConfig  # noqa: E402
from uda.hardness.study.config import StudyConfig  # noqa: E402
from uda.models.backbones import BACKBONES  # noqa: E402
from uda.models.bodies import BODIES  # noqa: E402
from uda.models.decoders import DECODERS  # noqa: E402
from uda.models.losses import LOSSES  # noqa: E402
from uda.report.image_table import CLASS_COLUMNS, NUMBER_COLUMNS, VECTOR_COLUMNS  # noqa: E402
from uda.report.markdown import insert_markdown, markdown_table  # noqa: E402
from uda.selection.regularizers import REGULARIZERS  # noqa: E402
from uda.selection.selectors import SELECTORS  # noqa: E402
from uda.training.config import RunConfig  # noqa: E402

DOCS = ROOT / "docs"
#: Kinds of config by the heading of their part of the page.
KINDS: Mapping[str, type[Settings]] = {
    "Adaptation": AdaptationConfig,
    "Domain generalisation": GeneralizationConfig,
    "Hardness dynamics": SupervisedConfig,
    "Hardness study": StudyConfig,
}
#: Base classes. Their settings are listed once, under these headings.
BASES: Mapping[type[Settings], str] = {
    RunConfig: "Every run",
    StorageSettings: "Every run: data",
    TransformSettings: "Every run: transforms",
}
HIDDEN = ("plugin_code", "bank", "class_vectors")  # filled in by the program
BOUNDS = {annotated_types.Ge: "≥", annotated_types.Gt: ">", annotated_types.Le: "≤", annotated_types.Lt: "<"}
NAMES = {str: "text", int: "integer", float: "number"}


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def members(declared: Any) -> list[Any]:
    """The types of a union, without annotations."""
    if get_origin(declared) is Annotated:
        return members(get_args(declared)[0])
    if get_origin(declared) in (Union, types.UnionType):
        return [member for part in get_args(declared) for member in members(part)]
    return [declared]


def section_of(field: FieldInfo) -> type[Settings] | None:
    """The section in a field; None for a setting."""
    return next((m for m in members(field.annotation) if isinstance(m, type) and issubclass(m, Settings)), None)


def type_text(declared: Any) -> str:
    """A declared type in words."""
    words = []
    for member in members(declared):
        origin, arguments = get_origin(member), get_args(member)
        if member is type(None):
            words.append("null")
        elif member is bool:
            words += ["true", "false"]
        elif origin is Literal:
            words += [f"`{value}`" for value in arguments]
        elif origin in (list, tuple) or member in (list, tuple):
            of = type_text(arguments[0]) if arguments else "values"
            words.append(f"list of {of}")
        elif origin is dict or member is dict:
            words.append("mapping")
        elif isinstance(member, type) and issubclass(member, Settings):
            words.append("section")
        else:
            words.append(NAMES.get(member, getattr(member, "__name__", str(member))))
    return ", ".join(words[:-1]) + (" or " if len(words) > 1 else "") + words[-1]


def bounds_text(field: FieldInfo) -> str:
    """The bounds of a number."""
    found = [
        f"{sign} {getattr(bound, kind.__name__.lower()):g}"
        for bound in field.metadata
        for kind, sign in BOUNDS.items()
        if isinstance(bound, kind)
    ]
    return f", {', '.join(found)}" if found else ""


def default_text(field: FieldInfo) -> str:
    """A default in the form of a config."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Settings):
        changed = {name: getattr(value, name) for name in type(value).model_fields if name in value.model_fields_set}
        return f"`{json.dumps(changed)}`" if changed else "its defaults"
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, tuple) and all(isinstance(entry, float) for entry in value):
        value = [round(entry, 4) for entry in value]
    return f"`{json.dumps(value)}`"


def own_fields(kind: type[Settings]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields of a section, without those that it inherits unchanged from a base."""
    base = next((b for b in BASES if kind is not b and issubclass(kind, b)), None)
    for name, field in kind.model_fields.items():
        inherited = base and name in base.model_fields and name not in kind.__annotations__
        if name not in HIDDEN and not inherited:
            yield name, field


def meaning_of(kind: type[Settings], name: str) -> str:
    """The docstring of a setting, in its class or in a base class."""
    found = (base.model_fields[name].description for base in kind.__mro__ if name in getattr(base, "model_fields", {}))
    return cell(next(filter(None, found), ""))


def table(kind: type[Settings], rows: Sequence[tuple[str, FieldInfo]], links: Mapping[type[Settings], str]) -> str:
    """Fields as a Markdown table."""
    lines = []
    for name, field in rows:
        section = section_of(field)
        meaning = meaning_of(kind, name.rpartition(".")[2])
        if section in links:
            meaning = f"{meaning} Settings: [{links[section]}](#{slug(links[section])}).".strip()
        declared = cell(type_text(field.annotation) + bounds_text(field))
        lines.append([f"`{name}`", declared, cell(default_text(field)), meaning])
    return markdown_table(["setting", "type", "default", "what it does"], lines)


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def walk(kind: type[Settings], place: str = "") -> Iterator[tuple[type[Settings], str]]:
    """The sections below a config or a section, each with its dotted key."""
    for name, field in kind.model_fields.items():
        if section := section_of(field):
            yield section, f"{place}{name}"
            yield from walk(section, f"{place}{name}.")


def settings_page() -> str:
    """Every setting of every kind of config."""
    places: dict[type[Settings], list[tuple[str, str]]] = {}
    for title, kind in KINDS.items():
        for section, place in walk(kind):
            places.setdefault(section, []).append((title, place))
    headings: dict[type[Settings], str] = {}
    for section, found in places.items():
        kinds = {title for title, _ in found}
        last = {place.split(".")[-1] for _, place in found}
        name = last.pop() if len(last) == 1 else section.__name__.removesuffix("Settings").lower()
        name = found[0][1] if len(found) == 1 else name
        headings[section] = f"{'Every run' if len(kinds) > 1 else found[0][0]}: {name}"
    assert len(set(headings.values())) == len(headings), sorted(headings.values())

    def part(heading: str, kind: type[Settings], level: str) -> str:
        text = f"{level} {heading}\n\n"
        doc = (kind.__doc__ or "").strip()
        text += f"{' '.join(doc.split(chr(10) * 2)[0].split())}\n\n"
        if len(found := places.get(kind, [])) > 1:
            where = ", ".join(f"`{place}`" for place in dict.fromkeys(place for _, place in found))
            text += f"Used in {where}.\n\n"
        base = next((b for b in BASES if kind is not b and issubclass(kind, b)), None)
        rows = list(own_fields(kind))
        if rows:
            text += table(kind, rows, headings)
        if base:
            text += f"\nThis section also has the settings of [{BASES[base]}](#{slug(BASES[base])}).\n"
        return text + "\n"

    parts = [part(BASES[RunConfig], RunConfig, "##"), part(BASES[StorageSettings], StorageSettings, "###")]
    shared = [section for section in headings if headings[section].startswith("Every run")]
    parts += [part(headings[section], section, "###") for section in shared]
    for title, kind in KINDS.items():
        parts.append(part(title, kind, "##"))
        own = [section for section in headings if headings[section].startswith(f"{title}: ")]
        parts += [part(headings[section], section, "###") for section in own]
    return "\n" + "".join(parts)


def options_text(kind: type[Settings], prefix: str) -> str:
    """The options of a method or a loss."""
    if not kind.model_fields:
        return "It has no settings.\n"
    return table(kind, [(f"{prefix}.{name}", field) for name, field in kind.model_fields.items()], {})


def paragraphs(doc: str | None) -> str:
    """A docstring as Markdown paragraphs. Indented formulas become code."""
    parts = []
    for block in re.split(r"\n\s*\n", (doc or "").strip()):
        for formula, lines in itertools.groupby(block.split("\n"), key=lambda line: line.startswith(" " * 8)):
            if formula:
                parts.append("\n".join(["```", *(line[8:] for line in lines), "```"]))
            else:
                parts.append(" ".join(line.strip() for line in lines))
    return "\n\n".join(parts)


def step_costs() -> dict[str, float]:
    """The time of a training step of each method, as a multiple of the plain method's on the same number of images."""
    rows = {row["name"]: row for row in json.loads((ROOT / "results" / "bench.json").read_text(encoding="utf-8"))}
    return {
        name.partition("_")[2]: row["seconds"] / row["floor_seconds"]
        for name, row in rows.items()
        if name.startswith(("method_", "generalize_"))
    }


def configs_of(pattern: str) -> list[str]:
    """Names of configs."""
    return sorted(path.name for path in (ROOT / "configs").glob(pattern))


def methods_text(methods: Registry, plain: str) -> str:
    """One part per method: its source, its docstring, its configs, the cost of its step and its settings."""
    costs, text = step_costs(), "\n"
    for name in sorted(methods):
        method = methods[name]
        module = (sys.modules[method.__module__].__doc__ or "").strip().split("\n")[0]
        text += f"### {name}\n\n{module}\n\n{paragraphs(method.__doc__)}\n\n"
        configs = {"self_training": ["cbst", "crst", "avh", "angular"], "source_only": ["source"]}.get(name, [name])
        files = [file for config in configs for file in configs_of(f"*_{config}.yaml")]
        if files:
            text += "Configs: " + ", ".join(f"`{file}`" for file in files) + ".\n\n"
        if name in costs:
            share = "about as" if abs(costs[name] - 1) < 0.15 else f"{costs[name]:.1f} times as"
            text += f"A training step takes {share} long as a step of {plain} on the same number of images.\n\n"
        text += options_text(method.Options, "method_options") + "\n"
    return text


def names_text(registry: Registry) -> str:
    """The table of a registry's names and descriptions."""
    lines = [[f"`{name}`", cell(text)] for name, text in registry.describe()]
    return f"\n{markdown_table(['name', 'what it is'], lines)}\n"


def classes_text(registry: Registry, key: str) -> str:
    """Classes of settings, each with its options, which a config gives under `key`."""
    text = "\n"
    for name in sorted(registry):
        text += f"### {name}\n\n{paragraphs(registry[name].__doc__)}\n\n"
        text += options_text(registry[name], key) + "\n"
    return text


def columns_text() -> str:
    """The columns of images.parquet."""
    columns = {
        "path": "name of the image, usually the path of its file below the data's folder",
        "domain": "name of its domain",
    }
    columns |= {**CLASS_COLUMNS, **NUMBER_COLUMNS}
    columns |= {name: f"{text}; only with `report.features=true`" for name, text in VECTOR_COLUMNS.items()}
    return markdown_table(("column", "what it is"), ((f"`{name}`", text) for name, text in columns.items()))


def blocks() -> dict[str, dict[str, str]]:
    """The text of every block, by page and name."""
    return {
        "settings.md": {"settings": settings_page()},
        "methods.md": {
            "adaptation-methods": methods_text(ADAPTATION_METHODS, "`source_only`"),
            "generalization-methods": methods_text(GENERALIZATION_METHODS, "`erm`"),
            "losses": classes_text(LOSSES, "model.loss_options"),
            "selectors": names_text(SELECTORS),
            "regularizers": names_text(REGULARIZERS),
            "unlabelled-losses": names_text(UNLABELLED_LOSSES),
            "validators": names_text(VALIDATORS),
            "backbones": names_text(BACKBONES),
            "bodies": names_text(BODIES),
            "decoders": classes_text(DECODERS, "model.decoder_options"),
        },
        "reports.md": {"image-columns": columns_text()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or with --check report the pages that are out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")
    options = parser.parse_args(argv)
    old = []
    for page, texts in blocks().items():
        path = DOCS / page
        before = after = path.read_text(encoding="utf-8")
        for name, text in texts.items():
            after = insert_markdown(after, name, text)
        if after != before:
            old.append(page)
            if not options.check:
                path.write_text(after, encoding="utf-8")
    if options.check and old:
        print(f"out of date: {', '.join(old)}; run python docs/reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
