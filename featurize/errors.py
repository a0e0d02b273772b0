"""The errors of Headgraft: one small tree, every leaf also a builtin.

HeadgraftError
├── FeaturizeError
│   ├── CallError (ValueError)
│   ├── CacheFormatError (ValueError)
│   ├── CacheUnreachableError, CacheReplacedError, CacheBusyError (OSError)
│   ├── FingerprintMismatchError (ValueError)
│   ├── DiskFullError, OutputError (OSError)
│   ├── RowNotReadyError (LookupError)
│   ├── UnknownLayerError, UnknownPathError (KeyError)
│   ├── BackboneError (ValueError)
│   │   └── UnknownWeightsError
│   ├── EngineError (RuntimeError)
│   ├── ImageUnreadableError (ValueError)
│   └── RunInterruptedError (RuntimeError)
└── ClassifyError, with leaves of its own: `classify.errors`
"""


class HeadgraftError(Exception):
    """Base of everything that Headgraft raises on purpose.

    The message says what happened, where, and what to do about it.
    """

    def __str__(self) -> str:
        # KeyError would print its argument with quotes around it.
        return str(self.args[0]) if self.args else ""


class FeaturizeError(HeadgraftError):
    """Base of everything ``featurize`` raises on purpose."""


class CallError(FeaturizeError, ValueError):
    """The call itself is wrong: an option, a folder, an output that cannot be."""


class CacheFormatError(FeaturizeError, ValueError):
    """A file is not a feature cache, is damaged, or is of a version unknown here."""


class CacheUnreachableError(FeaturizeError, OSError):
    """The system does not let a cache be read now. Nothing is known against the cache itself."""


class CacheReplacedError(FeaturizeError, OSError):
    """A cache that is open for reading has become another file, or was cut short."""


class FingerprintMismatchError(FeaturizeError, ValueError):
    """A cache was made by another backbone, weights or preprocessing than asked for."""


class CacheBusyError(FeaturizeError, OSError):
    """Another process is writing to the same cache."""


class DiskFullError(FeaturizeError, OSError):
    """There is no room for the cache."""


class OutputError(FeaturizeError, OSError):
    """A file cannot be written where it should go."""


class RowNotReadyError(FeaturizeError, LookupError):
    """Features were asked for of rows that are pending or failed."""


class UnknownLayerError(FeaturizeError, KeyError):
    """A layer is not in the cache, or not in the network."""


class UnknownPathError(FeaturizeError, KeyError):
    """An image is not in the cache."""


class BackboneError(FeaturizeError, ValueError):
    """A backbone cannot be had: no such name, weights that do not fit, no way to cut it."""


class EngineError(FeaturizeError, RuntimeError):
    """An engine cannot run this network here, or one image does not fit into its memory."""


class UnknownWeightsError(BackboneError):
    """A backbone has no weights of that name."""


class ImageUnreadableError(FeaturizeError, ValueError):
    """One image cannot become pixels; ``reason`` is its code in the cache's table."""

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message)
        self.reason = reason


class RunInterruptedError(FeaturizeError, RuntimeError):
    """The run was stopped; what was done is kept and marked, `summary` counts it."""

    def __init__(self, message: str, summary: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.summary = summary or {}
