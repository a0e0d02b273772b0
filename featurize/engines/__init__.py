"""How a cut backbone is run: an engine takes batches of pixels and gives batches of features.

Which engine ran is not in the fingerprint: in float32 every one of them agrees with `eager` to
`ENGINE_RTOL`, and is held to it by a batch of two when it is opened.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurize.engines.base import CPU_ENGINES, ENGINE_RTOL, ENGINES, PRECISIONS, Engine, check_engine

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone

__all__ = [
    "ENGINES",
    "ENGINE_RTOL",
    "PRECISIONS",
    "Engine",
    "check_device",
    "check_engine",
    "open_engine",
]


def check_device(device: str, precision: str) -> None:
    """Refuse a device that is not there, before anything is loaded for it.

    Raises
    ------
    CallError
    """
    from featurize.engines.eager import resolve_device

    resolve_device(device, precision)


def open_engine(
    backbone: "Backbone",
    layers: Sequence[tuple[str, str]],
    *,
    name: str = "eager",
    device: str = "auto",
    precision: str = "float32",
) -> Engine:
    """Make the engine that runs these layers of a backbone.

    Parameters
    ----------
    name : str
        One of `ENGINES`; ``auto`` is `eager` here, to begin with (see `engines.choice`).

    Raises
    ------
    CallError
        If the engine, device or precision is unknown or cannot be had here.
    EngineError
        If the engine cannot run this network.
    """
    from featurize.engines.eager import EagerEngine, resolve_device

    check_engine(name, device, precision)
    device = resolve_device(_choose_device(name, device), precision)
    module = backbone.cut(layers)
    eager = EagerEngine(module, backbone.preprocess, device=device, precision=precision)
    if name in ("auto", "eager"):
        return eager
    from featurize.engines.factory import open_verified_engine

    return open_verified_engine(name, eager, module, backbone.preprocess, precision)


def _choose_device(name: str, device: str) -> str:
    if device != "auto" or name in ("auto", "eager"):
        return device
    return "cpu" if name in CPU_ENGINES else "cuda"
