"""Networks: a backbone, the feature x, and the linear classifier W."""
