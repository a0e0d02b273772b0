"""The errors of stage 2: one small tree, every leaf also a builtin.

```
ClassifyError (a HeadgraftError)
├── CallError, LabelError, TooFewImagesError (ValueError)
├── UnknownHeadError, UnknownPathError (KeyError)
├── HeadFileError, HeadMismatchError, TextTowerError (ValueError)
├── OutputError (OSError)
└── DivergedError (ArithmeticError)
```
"""

from featurize.errors import HeadgraftError


class ClassifyError(HeadgraftError):
    """Base of every error that ``classify`` raises on purpose."""


class CallError(ClassifyError, ValueError):
    """The call is wrong: an option, a number or an array of the wrong shape."""


class LabelError(ClassifyError, ValueError):
    """A label table cannot be read, or contradicts itself or the cache."""


class TooFewImagesError(ClassifyError, ValueError):
    """There are no training images, or only one class to train on."""


class UnknownHeadError(ClassifyError, KeyError):
    """No head has that name."""


class UnknownPathError(ClassifyError, KeyError):
    """An image is not in the feature cache."""


class HeadFileError(ClassifyError, ValueError):
    """A file is not a saved head, is damaged, or has an unknown version."""


class HeadMismatchError(ClassifyError, ValueError):
    """A head was trained on features that were not computed like those of the cache."""


class TextTowerError(ClassifyError, ValueError):
    """A text tower cannot be used: unknown, unreadable, or not of the network of the cache."""


class OutputError(ClassifyError, OSError):
    """An output file cannot be written at its path."""


class PeerEndedError(ClassifyError, ConnectionError):
    """Another of the processes that train together has ended."""


class DivergedError(ClassifyError, ArithmeticError):
    """A network's training diverged: its loss is not a finite number."""
