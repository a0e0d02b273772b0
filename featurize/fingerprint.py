"""What decides an embedding's value, written one way and hashed."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def hash_weight_arrays(tensors: Mapping[str, np.ndarray]) -> str:
    """Digest of a network's weights, independent of the file format that held them.

    Floating-point tensors count as float32, which is what they are run as, so that a
    float16 file and its float32 copy agree. Batch norm's step counters decide nothing
    and are left out.

    Parameters
    ----------
    tensors : mapping of str to array
        As in a state dict.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    whole = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):
            continue
        array = tensors[name]
        if np.issubdtype(array.dtype, np.floating):
            array = array.astype("<f4", copy=False)
        header = canonical_json([name, array.dtype.str, list(array.shape)])
        whole.update(header.encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def compute_fingerprint(
    *,
    backbone: str,
    weights_sha256: str,
    preprocess: Mapping[str, object],
    layer: str,
    pool: str,
    precision: str,
    dtype: str,
) -> str:
    """Hash of all that decides a layer's numbers, and of nothing else."""
    fields = {
        "backbone": backbone,
        "weights_sha256": weights_sha256,
        "preprocess": dict(preprocess),
        "layer": layer,
        "pool": pool,
        "precision": precision,
        "dtype": dtype,
    }
    return hashlib.sha256(canonical_json(fields).encode()).hexdigest()
