"""Tasks of every kind: the options of all, and those whose labels are not one class an image."""
