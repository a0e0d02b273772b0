"""Save heads of every kind of labels, and load them."""

import os
from collections.abc import Mapping

import numpy as np

from classify.heads import io as class_heads
from classify.heads.files.values import open_head_file
from classify.heads.fitted import FittedHead
from classify.heads.targets.fitted import FittedTargets
from classify.heads.targets.io import load_target_head, save_target_head


def save_head(
    head: FittedHead | FittedTargets,
    path: str | os.PathLike[str],
    network: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Save a head to one file. An older head there is replaced atomically.

    Parameters
    ----------
    head : FittedHead or FittedTargets
        The trained head.
    path : path
        The output file.
    network : mapping of str to array, optional
        Tensors of the network that was fine-tuned with the head. If not given, the network that the
        head was loaded with is saved again.

    Raises
    ------
    OutputError
        If the file cannot be written, exists and is not a head, or if the head has objects that
        would not be loaded again.
    """
    if isinstance(head, FittedHead):
        class_heads.save_head(head, path, network)
    else:
        save_target_head(head, path, network)


def load_head(path: str | os.PathLike[str]) -> FittedHead | FittedTargets:
    """Load a head that `save_head` wrote.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    FittedHead or FittedTargets
        The second for several labels, numbers and grades. It gives the same outputs as the saved
        head.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    HeadFileError
        If the file is not a head, is damaged, or has a newer version.
    """
    with open_head_file(path) as (_, metadata):
        has_kind = "kind" in metadata
    return load_target_head(path) if has_kind else class_heads.load_head(path)
