"""Networks: a backbone, a head that gives the feature x, and the linear classifier W."""
