"""Scenes that the program makes: cards with the layout `generated`."""

from collections.abc import Callable

from uda.core.errors import UserError
from uda.data import digit_scenes, streets
from uda.data.images import Images
from uda.data.label_maps import LabelMaps

#: The function that makes the scenes of a card. It is called with a domain's name and a seed, and gives images and
#: label maps of train ids, whose numbers are those of the card's `classes`.
MAKERS: dict[str, Callable[[str, int], tuple[Images, LabelMaps]]] = {
    "scenes_digits": digit_scenes.domain,
    "streets": streets.domain,
}


def generated_scenes(card: str, domain: str, seed: int) -> tuple[Images, LabelMaps]:
    """The scenes of a generated domain. Raises UserError if no program makes those of the card."""
    if card not in MAKERS:
        known = ", ".join(MAKERS) or "none"
        raise UserError(f"the card '{card}' has the layout 'generated', but nothing makes its scenes (known: {known})")
    return MAKERS[card](domain, seed)
