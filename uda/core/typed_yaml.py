"""Reads YAML and `key=value` words by the declared types of settings. A text setting keeps the text as it was typed.

Plain YAML turns the name `2017` into a number, `on` into true and `2024-05-17` into a date, and removes ` #2` as a
comment.
"""

import datetime
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

#: Texts that YAML reads as numbers but people do not: base 60 (`1:30`) and octal (`010` is ten, not eight).
_NOT_NUMBERS = re.compile(r"[-+]?0[0-9_]+|.*:.*")


@dataclass(frozen=True)
class Scalar:
    """A value without quotes: what YAML reads it as, and its text. `typed` chooses one of the two."""

    value: Any
    text: str


class _Loader(yaml.SafeLoader):
    """Safe YAML. A value that YAML does not read as a text becomes a `Scalar`. Keys are texts and must differ."""

    def construct_document(self, node):
        return self.construct_object(node, deep=True)  # deep, so that content that contains itself is an error

    def construct_object(self, node, deep=False):
        if not isinstance(node, yaml.ScalarNode) or node.style is not None:
            return super().construct_object(node, deep)
        try:
            value = super().construct_object(node)
        except ValueError:  # such as a date with a 13th month
            return node.value
        odd = isinstance(value, int | float) and _NOT_NUMBERS.fullmatch(node.value)
        unmeant = odd or isinstance(value, str | datetime.date)
        return node.value if unmeant else Scalar(value, node.value)

    def construct_mapping(self, node, deep=False):
        self._refuse_twice(node)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep) for key, value in node.value}

    def _refuse_twice(self, node) -> None:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key.start_mark)
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' is given twice", key.start_mark)
            seen.add(key.value)


for _tag in ("value", "merge"):  # `=` and `<<` as values
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", yaml.SafeLoader.construct_yaml_str)


def load_yaml(text: str) -> Any:
    """Mappings, lists, texts and `Scalar`s, for `typed`. Raises yaml.YAMLError."""
    return _copy(_parsed(text))


@functools.lru_cache(maxsize=256)  # a table reads the same few files and values for each of its runs
def _parsed(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise yaml.YAMLError("nested too deep") from None


def _copy(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _copy(value) for key, value in content.items()}
    return [_copy(value) for value in content] if isinstance(content, list) else content


def typed(content: Any, declared: Any) -> Any:
    """What `load_yaml` or `read_word` returned, with each `Scalar` replaced by its text or its value.

    It is the text if a text is declared, else the value.

    Args:
        content: content of any shape. pydantic refuses later what does not fit.
        declared: a section of settings, or the type of a setting. `Any` if it is not known.
    """
    if isinstance(content, Scalar):
        return content.text if _wants_text(content, _members(declared)) else content.value
    if isinstance(content, Mapping):
        return {key: typed(value, declared_below(declared, key)) for key, value in content.items()}
    if isinstance(content, list):
        return [typed(value, declared_below(declared, place)) for place, value in enumerate(content)]
    return content


def read_word(text: str, declared: Any) -> Any:
    """The value of a `key=value` word, for `typed`. A command line has no comments.

    A text is not changed. `null` is None if the setting may be None. A list of texts is written as one text or as
    `[one, two]`. A text with a comma needs quotes in a list.
    """
    members = _members(declared)
    if not text or (NoneType in members and text in ("~", "null", "Null", "NULL")):
        return None
    is_list = any(_is_text(declared_below(member, 0)) for member in members)
    if is_list and text.startswith("[") and text.endswith("]"):
        return _items(text[1:-1])
    if any(map(_is_text, members)):
        return text
    if is_list:
        return [text]
    try:
        value = load_yaml(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, Mapping | list) or "#" not in text else text


def declared_below(declared: Any, key: str | int) -> Any:
    """The type of one entry, by key in a section or a mapping, by place in a list. `Any` if it is not known."""
    for member in _members(declared):
        if isinstance(member, type) and issubclass(member, BaseModel):
            if key in member.model_fields:
                return member.model_fields[key].annotation
            continue
        kind, arguments = get_origin(member), get_args(member)
        if kind is None or not isinstance(kind, type):
            continue
        if isinstance(key, str) and issubclass(kind, Mapping):
            return arguments[1]
        if isinstance(key, int) and issubclass(kind, Sequence):
            fixed = kind is tuple and Ellipsis not in arguments
            return arguments[key] if fixed and key < len(arguments) else arguments[0]
    return Any


def section_at(declared: Any, place: Sequence[str | int]) -> type[BaseModel] | None:
    """The section of settings at a place (keys and numbers) below another one. None if there is none."""
    for part in place:
        declared = declared_below(declared, part)
    return next((m for m in _members(declared) if isinstance(m, type) and issubclass(m, BaseModel)), None)


def _members(declared: Any) -> list[Any]:
    """The types of a union, without pydantic's annotations."""
    kind = get_origin(declared)
    if kind is Annotated:
        return _members(get_args(declared)[0])
    if kind in (Union, UnionType):
        return [member for part in get_args(declared) for member in _members(part)]
    return [declared]


def _is_text(declared: Any) -> bool:
    return any(
        member is str or (get_origin(member) is Literal and all(isinstance(name, str) for name in get_args(member)))
        for member in _members(declared)
    )


def _wants_text(scalar: Scalar, members: Sequence[Any]) -> bool:
    if scalar.value is None and (NoneType in members or not scalar.text):
        return False
    return any(map(_is_text, members)) and type(scalar.value) not in members


def _items(text: str) -> list[str]:
    """Split `a b, 'c, d', k=[e,f]` into its three texts. Commas within quotes and brackets do not split."""
    items, start, depth, quote = [], 0, 0, ""
    for place, letter in enumerate(f"{text},"):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and not text[start:place].strip():
            quote = letter
        elif letter in "[]":
            depth += 1 if letter == "[" else -1
        elif letter == "," and depth <= 0:
            items.append(text[start:place].strip())
            start = place + 1
    items.append(text[start:].strip())  # the rest after a quote or bracket that was not closed
    quoted = re.compile(r"(['\"]).*\1")
    return [item[1:-1] if quoted.fullmatch(item) else item for item in items if item]
