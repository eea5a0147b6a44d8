"""The templates of pages, and text that all pages share."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from uda.report import terminal
from uda.training.config import RunConfig

MOST_BARS = 40
NOTABLE_LOSS = 0.02


def template(name: str) -> Template:
    """A template from `templates/`, with filters that format figures for readers."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": terminal.percent, "fraction": terminal.fraction, "duration": duration}
    environment.globals["difference"] = terminal.difference
    return environment.get_template(name)


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
