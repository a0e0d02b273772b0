"""Solvers: find the parameters of one head on arrays."""
