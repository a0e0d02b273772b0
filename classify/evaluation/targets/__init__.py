"""Metrics of several labels, numbers and grades."""
