"""How a cut backbone is run: an engine takes batches of pixels and gives batches of features.

Which engine ran is not in the fingerprint: in float32 every one of them agrees with `eager` to
`ENGINE_RTOL`, and is held to it by a batch of two when it is opened.
"""
