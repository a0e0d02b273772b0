"""Heads for several labels, numbers and grades: fitted and compared."""
