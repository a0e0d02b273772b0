"""The backbone that ships inside the package: a small residual net trained from drawn images alone.

The network is in ``featurize.backbones.seedling.network`` (which imports torch), its weights lie beside it in
``seedling.safetensors``, its card is ``README.md``. This module imports nothing, so that finding
the files costs nothing.
"""
