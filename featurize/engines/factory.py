"""Open an engine for some layers of a backbone, and check it against `eager`."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from featurize.engines.base import (
    CPU_ENGINES,
    ENGINE_RTOL,
    REDUCED_RTOLS,
    Engine,
    check_engine,
)
from featurize.errors import EngineError
from featurize.images.preprocess import Preprocess
from featurize.layer_spec import LayerSpec

if TYPE_CHECKING:
    from torch import nn

    from featurize.backbones.backbone import Backbone
    from featurize.engines.eager import EagerEngine


def resolve_engine_device(name: str, device: str, precision: str) -> str:
    """Find the device that an engine will run on.

    Parameters
    ----------
    name : str
        One of `ENGINES`.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
    precision : str
        One of `featurize.engines.base.PRECISIONS`.

    Returns
    -------
    str
        ``cpu``, ``cuda`` or ``cuda:1``.

    Raises
    ------
    CallError
        If there is no such device, or the engine cannot run on it.
    """
    from featurize.engines.torch_settings import check_tf32, resolve_device

    if device == "auto":
        device = "cpu" if name in CPU_ENGINES else "cuda" if name == "cuda" else "auto"
    device = resolve_device(device)
    check_engine(name, device, precision)
    if precision == "tf32":
        check_tf32(device)
    return device


def choose_gpu(local_rank: int) -> str:
    """Choose the GPU of one of several processes on this machine.

    Parameters
    ----------
    local_rank : int
        Which one it is, from 0. Further processes than GPUs share them.

    Returns
    -------
    str
        As ``cuda:1``.
    """
    import torch

    return f"cuda:{local_rank % max(1, torch.cuda.device_count())}"


def describe_untested_gpu(device: str) -> str:
    """Say that Headgraft is not tested on a kind of GPU.

    Parameters
    ----------
    device : str
        As `resolve_engine_device` returns it.

    Returns
    -------
    str
        A sentence; empty for the processor and for NVIDIA's GPUs.
    """
    import torch

    if device == "cpu" or torch.version.hip is None:
        return ""
    return (
        f"{device} is a GPU of AMD's (ROCm), on which Headgraft is not tested: compare a few rows "
        "with those of --device cpu"
    )


def open_engine(
    backbone: "Backbone",
    layers: Sequence[LayerSpec],
    *,
    name: str = "eager",
    device: str = "auto",
    precision: str = "float32",
) -> Engine:
    """Open an engine that runs some layers of a backbone.

    Parameters
    ----------
    backbone : Backbone
    layers : sequence of LayerSpec
        Layers and their pools.
    name : str
        One of `ENGINES`; ``auto`` opens `eager`, see `EngineSelector`.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
    precision : {"float32", "tf32", "bf16", "fp16"}

    Returns
    -------
    Engine

    Raises
    ------
    CallError
        If the engine, device or precision is unknown or not available here.
    EngineError
        If the engine cannot run this network, or its features differ from those of `eager`.
    """
    from featurize.engines.eager import EagerEngine

    device = resolve_engine_device(name, device, precision)
    module = backbone.cut(layers)
    eager = EagerEngine(module, backbone.preprocess, device=device, precision=precision)
    if name in ("auto", "eager"):
        return eager
    return _open_verified_engine(name, eager, module, backbone.preprocess)


def _open_verified_engine(
    name: str, eager: "EagerEngine", module: "nn.Module", preprocess: Preprocess
) -> Engine:
    """Open an engine, and compare its features with those of `eager`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compilers and exporters warn about internals
        try:
            engine = _make_engine(name, module, preprocess, eager.device, eager.precision)
            batches = _make_check_batches(name, engine.batch_size, eager.crop)
            features = [engine.run(pixels) for pixels in batches]
        except Exception as error:  # compilers and exporters raise anything
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EngineError(
                f"the engine {name} cannot run this network here ({first_line[:200]}); "
                "use --engine eager"
            ) from error
    expected = [eager.run(pixels) for pixels in batches]
    difference = max(map(_max_relative_difference, features, expected))
    limit = REDUCED_RTOLS.get(eager.precision, ENGINE_RTOL)
    if difference > limit and len(batches) > 1:
        # Some networks differ by more between two sizes of a batch, whatever runs them.
        few = _max_relative_difference(
            eager.run(batches[-1][:2]), [layer[:2] for layer in expected[-1]]
        )
        limit = max(limit, 4 * few)
    if not difference <= limit:
        raise EngineError(
            f"the engine {name} gives other features for this network (by {difference:.0e} of "
            "their norm); use --engine eager"
        )
    return engine


def _make_check_batches(name: str, batch_size: int, crop: int) -> list[np.ndarray]:
    """Make the batches that an engine is checked with.

    CUDA graphs run the first batch as it is, record the second, and replay from the third on: so
    there are four, one of another size, and no two alike.
    """
    sizes = (batch_size, batch_size, batch_size, batch_size // 2 + 1) if name == "cuda" else (2,)
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, crop, crop, 3), np.uint8) for size in sizes]


def _make_engine(
    name: str, module: "nn.Module", preprocess: Preprocess, device: str, precision: str
) -> Engine:
    if name == "onnxruntime":
        from featurize.engines.onnx_runtime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(module, preprocess)
    if name == "compile":
        from featurize.engines.torch_compile import TorchCompileEngine

        return TorchCompileEngine(module, preprocess, precision)
    from featurize.engines.gpu.cuda_graphs import CudaGraphEngine

    return CudaGraphEngine(module, preprocess, device=device, precision=precision)


def _max_relative_difference(features: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Compute the largest distance between matching rows, relative to the expected row's norm."""
    ratios = []
    for values, expected_values in zip(features, expected, strict=True):
        norm = np.linalg.norm(expected_values, axis=1)
        ratio = np.linalg.norm(values - expected_values, axis=1) / np.maximum(norm, 1e-12)
        ratios.append(ratio[np.isfinite(norm)])  # rows that are not finite fail under any engine
    return float(np.concatenate(ratios).max(initial=0.0))
