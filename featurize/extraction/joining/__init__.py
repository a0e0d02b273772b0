"""A cache of parts becomes one file."""
