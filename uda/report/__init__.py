"""Reports of runs for people and programs: JSON, CSV, TensorBoard, tables in the terminal and an HTML page."""
