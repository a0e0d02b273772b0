"""Frozen networks: by name or from a file, cut at a layer and pooled."""
