"""Registries: lookup, listing, what a typo gets."""

import pytest

from uda.core.errors import UserError
from uda.core.registry import Registry, UnknownNameError, nearest


@pytest.fixture
def cheeses():
    registry = Registry("cheese")

    @registry.register("gouda")
    def gouda():
        """Round and yellow.

        From the Netherlands.
        """
        return "gouda"

    @registry.register("brie")
    def brie():
        """Soft."""
        return "brie"

    return registry


def test_lookup_gives_what_was_registered(cheeses):
    assert cheeses["brie"]() == "brie"
    assert "brie" in cheeses
    assert "bri" not in cheeses
    assert len(cheeses) == 2
    assert sorted(cheeses) == ["brie", "gouda"]


def test_unknown_name_lists_the_known_and_the_nearest(cheeses):
    with pytest.raises(UnknownNameError) as caught:
        cheeses["goda"]
    assert str(caught.value) == "unknown cheese 'goda', did you mean 'gouda'? (known: brie, gouda)"
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, KeyError)


def test_letters_that_changed_places_are_nearer_than_another_letter():
    known = ["digits_mcc", "digits_mcd", "digits_mmd"]
    assert nearest("digits_mdc", known) == ", did you mean 'digits_mcd'?"
    assert nearest("digits_mmf", known) == ", did you mean 'digits_mmd'?" and nearest("visda", known) == ""


def test_unknown_name_that_resembles_none(cheeses):
    with pytest.raises(UnknownNameError, match=r"^unknown cheese 'xyz' \(known: brie, gouda\)$"):
        cheeses["xyz"]
    assert cheeses.get("xyz") is None


def test_unknown_name_in_an_empty_registry():
    with pytest.raises(UnknownNameError, match="unknown cheese 'brie'"):
        Registry("cheese")["brie"]


def test_a_name_taken_twice_is_refused(cheeses):
    with pytest.raises(ValueError, match="cheese 'brie' is registered twice"):

        @cheeses.register("brie")
        def other():
            """Another one."""

    assert cheeses["brie"]() == "brie"


def test_describe_gives_names_in_order_with_the_first_line(cheeses):
    assert cheeses.describe() == [("brie", "Soft."), ("gouda", "Round and yellow.")]


def test_describe_of_an_entry_without_docstring():
    registry = Registry("cheese")
    registry.register("plain")(lambda: None)
    assert registry.describe() == [("plain", "")]
