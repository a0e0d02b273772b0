"""Doubt: which labels an image may have, and whether it is like any that were learnt from."""
