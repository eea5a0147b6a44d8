"""The packages of the wheel. All else about the distribution is in setup.cfg.

configs/ and datasets/ lie beside the package in a checkout and inside it in a wheel, which setup.cfg cannot say.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["uda", "uda.*"]), "uda.configs", "uda.datasets"],
    package_dir={"uda.configs": "configs", "uda.datasets": "datasets"},
    package_data={
        "": ["templates/*", "page/*"],
        "uda": ["py.typed"],
        "uda.configs": ["*.yaml", "*/*.yaml"],
        "uda.datasets": ["*.yaml"],
    },
)
