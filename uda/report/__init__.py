"""What a run leaves for people and for tools: JSON, CSV, TensorBoard, the terminal's table and one HTML page."""

from uda.report.run import ChoiceRecord, RoundRecord, RunReport

__all__ = ["ChoiceRecord", "RoundRecord", "RunReport"]
