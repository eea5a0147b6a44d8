"""Networks: a backbone, the feature x, and the linear classifier W."""

from uda.models.backbones import BACKBONES, create_backbone, describe_weights
from uda.models.network import (
    Classifier,
    Network,
    Output,
    Prediction,
    create_network,
    describe_network,
    network_on,
)
from uda.models.weights import load_network, read_description, save_network

__all__ = [
    "BACKBONES",
    "Classifier",
    "Network",
    "Output",
    "Prediction",
    "create_backbone",
    "create_network",
    "describe_network",
    "describe_weights",
    "load_network",
    "network_on",
    "read_description",
    "save_network",
]
