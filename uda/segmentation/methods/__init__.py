"""The methods of segmentation, by name."""

from uda.segmentation.methods.base import SEGMENTATION_METHODS, SegmentationMethod
from uda.segmentation.methods.self_training import SelfTraining
from uda.segmentation.methods.source_only import SourceOnly

__all__ = ["SEGMENTATION_METHODS", "SegmentationMethod", "SelfTraining", "SourceOnly"]
