"""Heads: the kinds, the trained model, its file and its use."""
