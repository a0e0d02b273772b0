"""Sections of the report for several labels, numbers and grades."""
