"""How a cut backbone is run: an engine takes batches of pixels and gives batches of features."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from featurize.errors import CallError

if TYPE_CHECKING:
    from featurize.backbones import Backbone

ENGINES = ("auto", "eager")
PRECISIONS = ("float32", "tf32", "bf16", "fp16")


class Engine(Protocol):
    """Runs one cut backbone on one device."""

    batch_size: int
    device: str

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch.

        Parameters
        ----------
        pixels : uint8 array of shape (B, crop, crop, 3)

        Returns
        -------
        list of float32 arrays of shape (B, D)
            One a layer.
        """
        ...


def check_device(device: str, precision: str) -> None:
    """Refuse a device that is not there, before anything is loaded for it.

    Raises
    ------
    CallError
    """
    from featurize.engines.eager import device_of

    device_of(device, precision)


def open_engine(
    backbone: "Backbone",
    layers: Sequence[tuple[str, str]],
    *,
    name: str = "auto",
    device: str = "auto",
    precision: str = "float32",
) -> Engine:
    """Make the engine that runs these layers of a backbone.

    Raises
    ------
    CallError
        If the engine, device or precision is unknown or cannot be had here.
    """
    from featurize.engines.eager import Eager

    if name not in ENGINES:
        raise CallError(f"no engine {name!r}; there are {', '.join(ENGINES)}")
    return Eager(backbone.cut(layers), backbone.preprocess, device=device, precision=precision)
