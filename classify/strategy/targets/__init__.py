"""Advice for several labels, numbers and grades."""
