"""What a run leaves for people and for tools: JSON, CSV, TensorBoard, the terminal's table and one HTML page."""
