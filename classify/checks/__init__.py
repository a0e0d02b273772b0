"""Checks of the data: duplicates across the split, label issues, small classes."""
