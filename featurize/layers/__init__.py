"""Layers: a network traced into a graph, cut at layers, pooled to vectors."""
