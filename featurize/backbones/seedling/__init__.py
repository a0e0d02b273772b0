"""The backbone that ships with the package: a small residual net trained on drawn images only.

The network is in ``featurize.backbones.seedling.network``, which imports torch. Its weights are in
the same folder in ``seedling.safetensors``, and its model card is ``README.md``. This module
imports nothing, so that locating the files is fast.
"""
