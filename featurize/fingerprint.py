"""Fingerprints: a hash of everything that determines the values of an embedding."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np


def canonical_json(value: object) -> str:
    """Write JSON with sorted keys and no spaces, so that equal values give equal text.

    Parameters
    ----------
    value : object
        A value that JSON can hold.

    Returns
    -------
    str
        JSON text.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def hash_weight_arrays(tensors: Mapping[str, np.ndarray]) -> str:
    """Hash a network's weights, independently of the format of their file.

    Floating-point tensors are hashed as float32, the type in which they are run, so that a
    float16 file and its float32 copy agree. The step counters of batch norm do not affect the
    features and are left out.

    Parameters
    ----------
    tensors : mapping of str to array
        Arrays by name, as in a state dict.

    Returns
    -------
    str
        SHA-256 digest, 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):
            continue
        array = tensors[name]
        if np.issubdtype(array.dtype, np.floating):
            array = array.astype("<f4", copy=False)
        header = canonical_json([name, array.dtype.str, list(array.shape)])
        digest.update(header.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


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
    """Hash everything that determines a layer's features, and nothing else.

    Parameters
    ----------
    backbone : str
        Name of the backbone.
    weights_sha256 : str
        Digest of its weights, as `hash_weight_arrays` returns it.
    preprocess : mapping
        The preprocessing, as `Preprocess.to_dict` returns it.
    layer : str
        Name of the layer.
    pool : str
        How its maps are pooled.
    precision : str
        Precision of the arithmetic.
    dtype : str
        Type of the stored features.

    Returns
    -------
    str
        SHA-256 digest, 64 hexadecimal digits.
    """
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
