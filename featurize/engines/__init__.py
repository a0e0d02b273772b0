"""Engines run a cut backbone: batches of pixels in, batches of features out.

The engine is not part of the fingerprint. In float32 every engine agrees with `eager` to
`ENGINE_RTOL`; this is checked on a batch of two when it is opened.
"""
