"""The configuration of a segmentation: from labelled source scenes to unlabelled target images."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from uda.core.registry import Registry
from uda.core.settings import Settings
from uda.data.scene_settings import SceneDataSettings, SceneTransformSettings
from uda.models.settings import SegmentationModelSettings
from uda.segmentation.settings import SelfTrainingSettings
from uda.training.config import RunConfig
from uda.training.stage_settings import SourceSettings, TrainingSettings


class SegmentationConfig(RunConfig):
    """Config of a segmentation from a source to a target domain."""

    default_folder: ClassVar[str] = "runs/{name}/seed{seed}"

    not_identity = (*RunConfig.not_identity, "self_training.on_empty")
    length = ("self_training.rounds",)

    method: str = "self_training"
    """One of `--list methods`."""
    data: SceneDataSettings
    transforms: SceneTransformSettings = SceneTransformSettings()
    model: SegmentationModelSettings = SegmentationModelSettings()
    source: SourceSettings = SourceSettings()
    self_training: SelfTrainingSettings = SelfTrainingSettings()
    training: TrainingSettings = TrainingSettings()
    subsets: dict[str, list[str]] = Field(default_factory=dict)
    """Further means of IoU, each over some classes, by name. Tables of SYNTHIA have means over 16 and 13 classes."""

    @classmethod
    def registries(cls) -> Mapping[str, Registry]:
        from uda.models.decoders import DECODERS
        from uda.report.loggers import LOGGERS
        from uda.segmentation.methods import SEGMENTATION_METHODS
        from uda.selection.regularizers import REGULARIZERS
        from uda.selection.selectors import SELECTORS

        return {
            **super().registries(),
            "method": SEGMENTATION_METHODS,
            "model.decoder": DECODERS,
            "report.loggers": LOGGERS,
            "self_training.selector": SELECTORS,
            "self_training.regularizer": REGULARIZERS,
        }

    @classmethod
    def option_kinds(cls) -> Mapping[str, Mapping[str, type[Settings]]]:
        from uda.models.decoders import DECODERS

        return {**super().option_kinds(), "model.decoder": DECODERS}

    @property
    def trains_source(self) -> bool:
        """Whether the run begins with a source stage."""
        return not self.source.checkpoint and bool(self.source.steps or self.source.epochs)

    @property
    def domains(self) -> Mapping[str, str]:
        return {"source": self.data.source, "target": self.data.target}

    @property
    def vectors_file(self) -> None:
        return None

    @property
    def start(self) -> str | None:
        return self.source.checkpoint
