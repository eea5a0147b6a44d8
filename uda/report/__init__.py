"""What a run leaves for people and for tools: JSON, CSV, TensorBoard, the terminal's table and one HTML page."""

from uda.report.run import RoundRecord, RunReport

__all__ = ["RoundRecord", "RunReport"]
