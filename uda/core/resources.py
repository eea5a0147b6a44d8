"""The folders of uda's own configs and data set cards.

A checkout has them in its top folder, even if it is installed with `pip install -e`. A wheel has them in the package.
"""

from pathlib import Path

#: Name of the distribution on PyPI. Another project there is called uda.
DISTRIBUTION = "uda-toolkit"

PACKAGE = Path(__file__).resolve().parents[1]
#: The top folder of the checkout with this code. None if it was installed from a wheel.
CHECKOUT = None if (PACKAGE / "configs").is_dir() else PACKAGE.parent

#: Folder of the configs, with `base/` and `tables/` in it.
CONFIGS = (CHECKOUT or PACKAGE) / "configs"
#: Folder of the data set cards. The data sets themselves are elsewhere: see `uda.data.cards.Card.places`.
CARD_FOLDER = (CHECKOUT or PACKAGE) / "datasets"
