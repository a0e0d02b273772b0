"""A cache of parts: a folder of ordinary caches and a small index."""
