"""The onnxruntime engine: the network exported to ONNX, on the processor."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from featurize.backbones.pixel_network import PixelNetwork
from featurize.engines.base import ProcessorEngine
from featurize.engines.torch_settings import choose_batch_sizes, count_compute_threads
from featurize.images.preprocess import Preprocess


class OnnxRuntimeEngine(ProcessorEngine):
    """Runs a cut network with ONNX Runtime.

    The exported file exists only while the engine is opened, in a folder that no other user can
    read. No other ONNX file is ever loaded.

    Parameters
    ----------
    module : nn.Module
        From a normalised float batch to a tuple of features.
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
        # A spinning thread takes a core from the decoding threads.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory(prefix="headgraft-") as folder:
            onnx_path = Path(folder) / "cut.onnx"
            _export_onnx(PixelNetwork(module, preprocess), crop, onnx_path)
            self._session = onnxruntime.InferenceSession(
                onnx_path, options, providers=["CPUExecutionProvider"]
            )
        self._input = self._session.get_inputs()[0].name

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch; see `featurize.engines.base.Engine`.

        Parameters
        ----------
        pixels : uint8 array of shape (B, crop, crop, 3)

        Returns
        -------
        list of float32 arrays of shape (B, D)
            One per layer.

        Raises
        ------
        MemoryError
            If ONNX Runtime cannot allocate memory.
        """
        try:
            return list(self._session.run(None, {self._input: np.ascontiguousarray(pixels)}))
        except Exception as error:
            # ONNX Runtime reports this by an exception class of its own.
            if "allocat" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise


def _export_onnx(pixel_network: PixelNetwork, crop: int, path: Path) -> None:
    example = torch.zeros(2, crop, crop, 3, dtype=torch.uint8)
    size = torch.export.Dim("batch", min=1, max=1 << 16)
    with torch.inference_mode():
        program = torch.onnx.export(
            pixel_network, (example,), dynamo=True, dynamic_shapes=({0: size},), verbose=False
        )
    if program is None:
        raise RuntimeError("the exporter gave no program")
    program.save(path)
