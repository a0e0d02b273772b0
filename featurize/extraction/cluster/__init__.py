"""Rows computed on a Ray cluster; this process alone writes them."""
