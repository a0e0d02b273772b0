"""The errors of stage 2: one small tree, every leaf also a builtin.

ClassifyError (a HeadgraftError)
├── CallError, LabelError, TooFewImagesError (ValueError)
├── UnknownHeadError, UnknownPathError (KeyError)
├── HeadFileError, HeadMismatchError (ValueError)
├── OutputError (OSError)
└── DivergedError (ArithmeticError)
"""

from featurize.errors import HeadgraftError


class ClassifyError(HeadgraftError):
    """Base of everything ``classify`` raises on purpose."""


class CallError(ClassifyError, ValueError):
    """The call itself is wrong: an option, a number, an array of the wrong shape."""


class LabelError(ClassifyError, ValueError):
    """A label table cannot be read, or says something that cannot be."""


class TooFewImagesError(ClassifyError, ValueError):
    """There is nothing to learn from: no training images, or one class only."""


class UnknownHeadError(ClassifyError, KeyError):
    """There is no head of that name."""


class UnknownPathError(ClassifyError, KeyError):
    """An image is not in the feature cache."""


class HeadFileError(ClassifyError, ValueError):
    """A file is not a saved head, is damaged, or is of a version unknown here."""


class HeadMismatchError(ClassifyError, ValueError):
    """A head was trained on features made in another way than the cache's."""


class OutputError(ClassifyError, OSError):
    """A head cannot be written where it should go."""


class DivergedError(ClassifyError, ArithmeticError):
    """A network's training went astray: its loss is no longer a number."""
