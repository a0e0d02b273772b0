"""Sources of images: they list the images by path, size and modification time."""
