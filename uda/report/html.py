"""The templates of pages, and text that all pages share."""

import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from uda.report import terminal
from uda.training.config import RunConfig


def template(name: str) -> Template:
    """A template from `templates/`, with filters that format figures for readers."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": terminal.percent, "fraction": terminal.fraction, "duration": duration}
    environment.filters |= {"clean": clean_name, "provenance": provenance}
    environment.globals |= {"difference": terminal.difference, "asset": asset}
    return environment


@cache
def asset(name: str) -> str:
    """The text of a file of `page/`, to put into a page."""
    return (Path(__file__).with_name("page") / name).read_text(encoding="utf-8")


def clean_name(name: str) -> str:
    """A name without control characters, which neither HTML nor SVG can hold."""
    return "".join(" " if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in str(name))


def provenance(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The content of `environment.json` in words. What is unknown is left out."""
    compute, weights = (
        found if isinstance(found := environment.get(name), Mapping) else {} for name in ("compute", "weights")
    )
    command = environment.get("command")
    by_hand = " ".join(map(str, command)) if isinstance(command, list) else None
    versions = {name: environment.get(name) for name in ("uda", "torch", "torchvision", "timm", "numpy", "python")}
    facts = {
        "Command": by_hand or ("a call from Python" if environment else None),
        "Commit": environment.get("commit"),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Device": environment.get("cuda") or compute.get("device"),
        "Computed with": ", ".join(f"{name} {value}" for name, value in compute.items() if value is not None),
        "Weights to begin with": _weights_text(weights),
        "Platform": environment.get("platform"),
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _weights_text(weights: Mapping[str, Any]) -> str:
    if weights.get("from") == "none":
        return "random"
    return ", ".join(f"{name} {value}" for name, value in weights.items() if value is not None)


def duration(seconds: float | None) -> str:
    """Seconds as text: `48 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def method_settings_text(config: RunConfig) -> str:
    """The method's own settings as text, with defaults. Settings that are None are left out."""
    options = config.methods()[config.method].Options(**config.method_options)
    chosen = {name.replace("_", " "): value for name, value in options.model_dump().items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in chosen.items())
