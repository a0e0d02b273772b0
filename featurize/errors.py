"""The errors of Headgraft: one small tree in which every leaf is also a builtin error.

```
HeadgraftError
├── FeaturizeError
│   ├── CallError (ValueError)
│   │   └── NoImagesError
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
└── ClassifyError, with its own leaves: see `classify.errors`
```
"""


class HeadgraftError(Exception):
    """Base of all errors that Headgraft raises on purpose.

    The message says what happened, where, and what to do about it.
    """

    def __str__(self) -> str:
        # KeyError would print its argument with quotes around it.
        return str(self.args[0]) if self.args else ""


class FeaturizeError(HeadgraftError):
    """Base of all errors that ``featurize`` raises on purpose."""


class CallError(FeaturizeError, ValueError):
    """An argument is invalid: an option, a folder or an output path."""


class NoImagesError(CallError):
    """No image is there, or none is left by the globs, the split or the component."""


class CacheFormatError(FeaturizeError, ValueError):
    """A file is not a feature cache, is damaged, or has an unknown format version."""


class CacheUnreachableError(FeaturizeError, OSError):
    """The system cannot read a cache at the moment; the cache itself may be sound."""


class CacheReplacedError(FeaturizeError, OSError):
    """A cache that is open for reading was replaced by another file or truncated."""


class FingerprintMismatchError(FeaturizeError, ValueError):
    """A cache was made with a backbone, weights or preprocessing other than those requested."""


class CacheBusyError(FeaturizeError, OSError):
    """Another process is writing to the same cache."""


class DiskFullError(FeaturizeError, OSError):
    """The disk has no room for the cache."""


class OutputError(FeaturizeError, OSError):
    """A file cannot be written at its target."""


class RowNotReadyError(FeaturizeError, LookupError):
    """Features were requested of rows that are pending or failed."""


class UnknownLayerError(FeaturizeError, KeyError):
    """The cache, or the network, has no such layer."""


class UnknownPathError(FeaturizeError, KeyError):
    """An image is not in the cache."""


class BackboneError(FeaturizeError, ValueError):
    """A backbone cannot be loaded: unknown name, weights that do not fit, or no place to cut."""


class EngineError(FeaturizeError, RuntimeError):
    """An engine cannot run this network here, or a single image exceeds its memory."""


class UnknownWeightsError(BackboneError):
    """A backbone has no weights of that name."""


class ImageUnreadableError(FeaturizeError, ValueError):
    """An image cannot be decoded.

    Parameters
    ----------
    message : str
        What is wrong with the image.
    reason : int
        The code of the cache's ``reason`` column (`featurize.images.reasons`).

    Attributes
    ----------
    reason : int
        As the parameter.
    """

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message)
        self.reason = reason


class RunInterruptedError(FeaturizeError, RuntimeError):
    """The run was stopped; finished rows are stored and marked.

    Parameters
    ----------
    message : str
        What stopped the run, and how to go on.
    summary : dict, optional
        Counts of what was done.

    Attributes
    ----------
    summary : dict of str to object
        As the parameter; empty if not given.
    """

    def __init__(self, message: str, summary: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.summary = summary or {}
