"""Advise on the strategy for a task, and run it."""
