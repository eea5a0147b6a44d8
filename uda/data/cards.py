"""Data set cards: what a data set is, its layout on disk and its number of images."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from uda.core.errors import UserError
from uda.core.registry import UnknownNameError, nearest
from uda.core.resources import CARD_FOLDER
from uda.core.settings import Settings, environment_folder
from uda.core.typed_yaml import typed
from uda.core.yaml_files import ConfigError, mistakes, read_yaml
from uda.data.label_coding import MOST_CLASSES, LabelCoding
from uda.data.text import same_form


class MissingDataError(UserError):
    """A data set, or a part of it, was not found.

    Args:
        what: what is missing.
        cure: where to get it.
    """

    def __init__(self, what: str, cure: str):
        super().__init__(f"{what}: {cure}")
        self.what = what


class CardFile(Settings):
    """A file to download."""

    name: str
    """Its name. The file is unpacked in the data set's folder."""
    url: str
    """Its address."""
    bytes: int = Field(ge=1)
    """Its size in bytes."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Its checksum. null: none is published."""


class CardDomain(Settings):
    """One domain of a data set."""

    path: str | tuple[str, ...]
    """Its folder, relative to the data set's folder. Of several paths, the first one that exists is used."""
    list: str | None = None
    """List file of `path label` lines, relative to the data set's folder. The paths in it are relative to `path`. For
    segmentation: lines of `image map`, `image`, or the names that image and map have in common, without endings."""
    maps: str | None = None
    """Only for segmentation: folder of the label maps, relative to the data set's folder. null: there are none."""
    image_ending: str | None = None
    """Only for segmentation: what follows the name that image and map have in common. null: any image's suffix."""
    map_ending: str | None = None
    """The same for the label maps. null: any suffix."""
    images: int | None = Field(None, ge=1)
    """Number of images. null if the program decides it."""
    per_class: dict[str, int] | None = None
    """Number of images of each class."""

    @field_validator("per_class")
    @classmethod
    def composed(cls, value):
        return value and {same_form(name): count for name, count in value.items()}

    @property
    def paths(self) -> tuple[str, ...]:
        """The folders it may have."""
        return (self.path,) if isinstance(self.path, str) else self.path


class Card(Settings):
    """A data set."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Its name in configs. It must be the card's file name without the ending."""
    task: Literal["classification", "segmentation"] = "classification"
    """`classification`: each image has a class. `segmentation`: each pixel has one, in a label map."""
    title: str
    """Its name in print."""
    paper: str
    """The paper that describes it."""
    url: str
    """Where to get it."""
    licence: str
    """Its terms of use, as far as its authors state them."""
    notes: str = ""
    """What to know when unpacking it."""
    files: tuple[CardFile, ...] = ()
    """The files to download that have fixed addresses. For the others see `url`."""
    folder: str
    """Its folder below $UDA_DATA, or below datasets/ in the current folder."""
    layout: Literal["folders", "lists", "generated"] = "folders"
    """`folders`: one folder per class. If a domain has a list file, the list is used. `lists`: list files are required,
    because they choose among the images. `generated`: the program makes the images, and nothing is downloaded."""
    classes: tuple[str, ...] | None = None
    """Class names in label order. null: as found on disk."""
    num_classes: int = Field(ge=2)
    """Number of classes. Only for segmentation: it may be left out."""
    ids: dict[int, str] = Field({})
    """Only for segmentation: the values in label maps and the class of each. Several values may have one class. The
    classes are in this order if `classes` is null."""
    ignore: tuple[int, ...] = ()
    """Only for segmentation: the values of pixels without a class. Any other value in a label map is an error."""
    channel: int | None = Field(None, ge=0)
    """Only for segmentation: channel of the label maps that holds the class. 0 is red. null: they have one channel."""
    colors: dict[str, tuple[int, int, int]] = Field({})
    """Only for segmentation: the classes' colours in pictures, `[red, green, blue]`. null: from a list of colours."""
    domains: dict[str, CardDomain]
    """Domains by name."""

    _file: Path | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def classes_of_ids(cls, values):
        ids = values.get("ids") if isinstance(values, dict) and values.get("task") == "segmentation" else None
        if not isinstance(ids, dict):
            return values
        names = values.get("classes") or list(dict.fromkeys(ids.values()))
        return {**values, "classes": names, "num_classes": values.get("num_classes", len(names))}

    @field_validator("classes")
    @classmethod
    def composed(cls, value):
        return value and tuple(map(same_form, value))

    @field_validator("ids")
    @classmethod
    def composed_names(cls, value):
        return {number: same_form(name) for number, name in value.items()}

    @field_validator("colors")
    @classmethod
    def colours(cls, value):
        for name, colour in value.items():
            if not all(0 <= part <= 255 for part in colour):
                raise ValueError(f"{name}: needs three numbers from 0 to 255, got {list(colour)}")
        return {same_form(name): colour for name, colour in value.items()}

    @model_validator(mode="after")
    def consistent_maps(self):
        if self.task == "classification":
            of_maps = [key for key in ("ids", "ignore", "colors") if getattr(self, key)]
            of_maps += ["channel"] * (self.channel is not None)
            of_maps += [
                f"domains.{name}.{key}"
                for name, domain in self.domains.items()
                for key in ("maps", "image_ending", "map_ending")
                if getattr(domain, key) is not None
            ]
            if of_maps:
                raise ValueError(f"{', '.join(of_maps)}: only for data sets with label maps; write task: segmentation")
            return self
        if not self.ids and self.layout != "generated":
            raise ValueError("ids: a data set with label maps needs them: the values in the maps, each with its class")
        classes = self.classes or ()
        if self.ids and (odd := sorted(set(self.ids.values()) ^ set(classes))):
            raise ValueError(f"ids and classes differ: {', '.join(odd)}")
        if odd := sorted(set(self.colors) - set(classes)):
            raise ValueError(f"colors: not among the classes: {', '.join(odd)}")
        if len(classes) > MOST_CLASSES:
            raise ValueError(f"classes: {len(classes)}, but a label map holds at most {MOST_CLASSES}")
        if counted := [name for name, domain in self.domains.items() if domain.per_class is not None]:
            raise ValueError(f"domains.{counted[0]}.per_class: here pixels have classes, not images; remove it")
        self.coding(classes)
        return self

    def coding(self, classes: Sequence[str]) -> LabelCoding:
        """How the data set's label maps are read if `classes` are those of a run. Its other classes become void."""
        numbers = {name: number for number, name in enumerate(classes)}
        ids = {value: numbers[name] for value, name in self.ids.items() if name in numbers}
        ignore = {*self.ignore, *(value for value, name in self.ids.items() if name not in numbers)}
        if both := sorted(self.ids.keys() & set(self.ignore)):
            raise ValueError(f"in `ids` and in `ignore`: {', '.join(map(str, both))}")
        return LabelCoding(ids, frozenset(ignore), self.channel, place=f"the card '{self.name}'")

    @model_validator(mode="after")
    def consistent(self):
        if self.classes is not None:
            different = len(set(self.classes))
            if not different == len(self.classes) == self.num_classes:
                raise ValueError(
                    f"classes: {len(self.classes)} names, {different} of them different, but "
                    f"num_classes is {self.num_classes}"
                )
        for name, domain in self.domains.items():
            counts = domain.per_class
            if counts is not None and sum(counts.values()) != domain.images:
                total = sum(counts.values())
                raise ValueError(f"domains.{name}: per_class adds up to {total}, but images is {domain.images}")
            if counts is not None and self.classes is not None and set(counts) != set(self.classes):
                odd = ", ".join(sorted(set(counts) ^ set(self.classes)))
                raise ValueError(f"domains.{name}: per_class and classes differ: {odd}")
            if self.layout == "lists" and domain.list is None:
                raise ValueError(f"domains.{name}: the layout 'lists' needs a list")
        return self

    @property
    def kind(self) -> str:
        """`segmentation, ` for label maps, else empty: for lists of data sets."""
        return "segmentation, " if self.task == "segmentation" else ""

    def domain(self, name: str) -> CardDomain:
        """A domain by name. Raises UserError that lists the known names and the nearest one."""
        if name not in self.domains:
            known = list(self.domains)
            own = "; for folders of your own, set data.dataset=null" if Path(name).exists() else ""
            raise UserError(
                f"{self.name}: unknown domain '{name}'{nearest(name, known)} (known: {', '.join(known)}){own}"
            )
        return self.domains[name]

    def places(self, root: str | None = None) -> list[Path]:
        """Where the data set's folder may be, best first.

        Args:
            root: the folder itself. No other place is then looked at. None: $UDA_DATA/<folder>, then datasets/<folder>
                in the current folder. A user's own card adds <folder> beside the card's file.
        """
        if root is not None:
            return [Path(os.path.expanduser(root))]
        homes = [*data_homes()]
        if self._file is not None and self._file.parent != CARD_FOLDER:
            homes.append(self._file.parent)
        return list(dict.fromkeys(home / self.folder for home in homes))

    def find_root(self, root: str | None = None) -> Path:
        """The first of `places` that exists.

        Raises MissingDataError, which says what to download and where to put it.
        """
        places = self.places(root)
        for place in places:
            if place.is_dir():
                return place
        first = places[0] / next(iter(self.domains.values())).paths[0]
        looked_at = [str(place) for place in places]
        if root is None:
            if not environment_folder("UDA_DATA"):
                looked_at.insert(0, f"$UDA_DATA/{self.folder} (UDA_DATA is not set)")
            looked_at.insert(0, "data.root (not set)")
        raise MissingDataError(
            f"{self.title} is not at {' or '.join(looked_at)}",
            f"download it from {self.url} and unpack it so that {first} exists, or set data.root to its folder, or "
            f"UDA_DATA to the folder that holds {self.folder}",
        )

    def find_domain(self, name: str, root: Path) -> tuple[Path, Path | None]:
        """A domain's folder, and its list file or None if its folders are the classes.

        Raises MissingDataError.
        """
        domain = self.domain(name)
        folder = next((root / path for path in domain.paths if (root / path).is_dir()), None)
        file = root / domain.list if domain.list is not None else None
        if folder is None:
            raise MissingDataError(
                f"{root / domain.paths[0]}: no such folder",
                f"{self.title} is not complete; get the domain '{name}' from {self.url}",
            )
        if file is not None and file.is_file():
            return folder, file
        if self.layout == "lists" or (self.task == "segmentation" and file is not None):
            raise MissingDataError(
                f"{file}: no such list",
                f"{self.title} needs it to know the images of '{name}'; get it from {self.url}",
            )
        return folder, None


def data_homes() -> list[Path]:
    """The folders that hold data sets, best first: $UDA_DATA, if it is set, and datasets/ in the current folder."""
    return [*filter(None, [environment_folder("UDA_DATA")]), Path.cwd() / "datasets"]


def _read(path: Path) -> Card:
    try:
        card = Card.model_validate(typed(read_yaml(path, "card"), Card))
    except ValidationError as error:
        raise ConfigError("\n".join(mistakes(error, Card, {}, path.name))) from None
    if card.name != path.stem:
        raise UserError(f"{path}: name is '{card.name}', but the file is called '{path.stem}'; make them the same")
    card._file = path.resolve()
    return card


class Shelf(Mapping[str, Card]):
    """The cards of a folder by name. A card is read at its first use."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._read = cache(_read)

    def __getitem__(self, name: str) -> Card:
        if name not in self:
            raise UnknownNameError(
                f"unknown data set '{name}'{nearest(name, list(self))} (known: {', '.join(self) or 'none'}; "
                "or give the path of a card, or null for images of your own)"
            )
        return self._read(self.folder / f"{name}.yaml")

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self.folder.glob("*.yaml")))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def names_for(self, task: str) -> list[str]:
        """The names of the cards of a task, `classification` or `segmentation`, in order."""
        return [name for name, card in self.items() if card.task == task]

    def describe(self) -> list[tuple[str, str]]:
        """Names in order, each with a line of title, number of classes and domains."""
        return [
            (name, f"{card.title}: {card.kind}{card.num_classes} classes; domains {', '.join(card.domains)}")
            for name, card in self.items()
        ]


#: uda's own cards.
CARDS = Shelf(CARD_FOLDER)


def load_card(name: str | Path) -> Card:
    """A card, by the path of its .yaml file or by its name.

    A name is looked for among uda's own cards, then in datasets/ in the current folder. Raises UserError.
    """
    path = Path(os.path.expanduser(name))
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return _read(path)
        if len(path.parts) > 1:
            raise UserError(f"data.dataset: no such card: {path}")
        name = path.stem
    own = Path("datasets", f"{name}.yaml")
    if str(name) not in CARDS and own.is_file():
        return _read(own)
    return CARDS[str(name)]
