"""Several caches of the same images."""
