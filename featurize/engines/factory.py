"""Open an engine that needs preparation, and hold it to what `eager` gives."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurize.engines.base import CPU_ENGINES, Engine, check_engine

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone

import warnings

import numpy as np
from torch import nn

from featurize.engines.base import ENGINE_RTOL
from featurize.engines.eager import EagerEngine
from featurize.errors import EngineError
from featurize.images.preprocess import Preprocess
from featurize.layer_spec import LayerSpec


def open_verified_engine(
    name: str, eager: EagerEngine, module: nn.Module, preprocess: Preprocess, precision: str
) -> Engine:
    """Make an engine, run a batch of two through it, and compare.

    Parameters
    ----------
    name : {"compile", "onnxruntime", "cuda"}
    eager : EagerEngine
        The same network.
    module : nn.Module
        The network that `eager` runs.

    Raises
    ------
    EngineError
        If it cannot run the network, or gives other features.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, eager.crop, eager.crop, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compilers and exporters warn of their own insides
        try:
            engine = _make_engine(name, module, preprocess, eager.device, precision)
            found = engine.run(pixels)
        except Exception as error:  # whatever a compiler or an exporter may raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EngineError(
                f"the engine {name} cannot run this network here ({first[:200]}); "
                "use --engine eager"
            ) from error
    if precision == "float32":
        off = _max_relative_difference(found, eager.run(pixels))
        if not off <= ENGINE_RTOL:
            raise EngineError(
                f"the engine {name} gives other features for this network (by {off:.0e} of their "
                "norm); use --engine eager"
            )
    return engine


def _make_engine(
    name: str, module: nn.Module, preprocess: Preprocess, device: str, precision: str
) -> Engine:
    if name == "onnxruntime":
        from featurize.engines.onnx_runtime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(module, preprocess)
    if name == "compile":
        from featurize.engines.torch_compile import TorchCompileEngine

        return TorchCompileEngine(module, preprocess, precision)
    from featurize.engines.cuda_graphs import CudaGraphEngine

    return CudaGraphEngine(module, preprocess, device=device, precision=precision)


def _max_relative_difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest distance between two rows, as a share of the row's norm."""
    rows = []
    for one, other in zip(found, expected, strict=True):
        norm = np.linalg.norm(other, axis=1)
        off = np.linalg.norm(one - other, axis=1) / np.maximum(norm, 1e-12)
        rows.append(off[np.isfinite(norm)])  # the others fail under any engine
    return float(np.concatenate(rows).max(initial=0.0))


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
    layers: Sequence[LayerSpec],
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
