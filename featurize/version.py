"""The version of this release, defined only here."""

__version__ = "0.1.0"
CREATED_BY = f"headgraft {__version__}"  # as written into caches
