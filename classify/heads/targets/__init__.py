"""Heads for several labels, numbers and grades."""
