"""Datasets of images or of cached activations, and loaders of their batches."""
