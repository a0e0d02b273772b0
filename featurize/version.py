"""Which release this is: the one place that says so."""

__version__ = "0.1.0"
CREATED_BY = f"headgraft {__version__}"  # as written into caches
