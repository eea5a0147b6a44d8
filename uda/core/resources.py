"""Where the configs and the data set cards that belong to uda lie.

A checkout has them in its top folder, also when it is installed with `pip install -e`. A wheel has them in the package.
"""

from pathlib import Path

#: Name of the distribution on PyPI, where another project is called uda.
DISTRIBUTION = "uda-toolkit"

PACKAGE = Path(__file__).resolve().parents[1]
#: The top folder of the checkout that this code is run from; None when it was installed from a wheel.
CHECKOUT = None if (PACKAGE / "configs").is_dir() else PACKAGE.parent

#: Configs, with `base/` and `tables/` in it.
CONFIGS = (CHECKOUT or PACKAGE) / "configs"
#: Data set cards. The data sets themselves lie elsewhere: see `uda.data.cards.Card.places`.
CARD_FOLDER = (CHECKOUT or PACKAGE) / "datasets"
