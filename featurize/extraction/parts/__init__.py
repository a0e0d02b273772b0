"""A run on a cache of parts, by any number of processes."""
