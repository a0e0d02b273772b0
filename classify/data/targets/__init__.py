"""Tasks whose labels are not one class an image."""
