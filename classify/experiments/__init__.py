"""Many heads on tasks: fit, compare, repeat."""
