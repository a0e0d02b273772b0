"""The onnxruntime engine: the network exported to ONNX, pixels in, on the processor."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from featurize.backbones.pixel_network import PixelNetwork
from featurize.engines.torch_settings import choose_batch_sizes, count_compute_threads
from featurize.images.preprocess import Preprocess


class OnnxRuntimeEngine:
    """Runs a cut network by ONNX Runtime.

    The file is written for the moment of opening into a folder that nobody else can read; no
    ONNX file of anybody's is ever loaded.

    Parameters
    ----------
    module : nn.Module
    preprocess : Preprocess
        Its ``crop``, ``mean`` and ``std``.
    """

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, module: nn.Module, preprocess: Preprocess) -> None:
        crop = preprocess.crop
        self.batch_size, self.max_batch_size = choose_batch_sizes(crop, self.device)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_compute_threads()
        options.inter_op_num_threads = 1
        # A thread that waits by spinning takes its core from the decoding threads.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory(prefix="headgraft-") as folder:
            file = Path(folder) / "cut.onnx"
            _export_onnx(PixelNetwork(module, preprocess), crop, file)
            self._session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
        self._input = self._session.get_inputs()[0].name

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch: uint8 (B, crop, crop, 3) in, float32 (B, D) out, one a layer."""
        try:
            return list(self._session.run(None, {self._input: np.ascontiguousarray(pixels)}))
        except Exception as error:
            # Its own errors are no MemoryError, whatever they say.
            if "allocat" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise


def _export_onnx(prepared: PixelNetwork, crop: int, file: Path) -> None:
    example = torch.zeros(2, crop, crop, 3, dtype=torch.uint8)
    size = torch.export.Dim("batch", min=1, max=1 << 16)
    with torch.inference_mode():
        program = torch.onnx.export(
            prepared, (example,), dynamo=True, dynamic_shapes=({0: size},), verbose=False
        )
    if program is None:
        raise RuntimeError("the exporter gave no program")
    program.save(file)
