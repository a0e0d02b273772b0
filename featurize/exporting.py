"""Hand the features to anything else."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from featurize.cache import FeatureCache
from featurize.errors import CallError
from featurize.layout import MARKED

ROWS_AT_ONCE = 8192


def export(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    layers: list[str] | None = None,
) -> int:
    """Write the marked rows of a cache to a ``.npz`` or ``.parquet`` file.

    The ``.npz`` holds ``path`` (text, (n,)) and one array (n, D) a layer, under the layer's
    name. The ``.parquet`` has a column ``path`` and one of fixed-size lists a layer.

    Parameters
    ----------
    layers : list of str, optional
        Dataset names; all of them if not given.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    CallError
        If the suffix is neither, or pyarrow is missing for parquet.
    UnknownLayer, FileNotFoundError, CacheFormatError
    """
    target = Path(output)
    if target.suffix not in (".npz", ".parquet"):
        raise CallError(f"-o {target} has to end in .npz or .parquet")
    if not target.parent.is_dir():
        raise CallError(f"there is no folder {target.parent} to write {target.name} to")
    cache = FeatureCache(path)
    names = [cache.layer(name).name for name in layers or cache.layers]
    rows = np.flatnonzero(cache.status == MARKED)
    temporary = target.with_name(target.name + ".tmp")
    try:
        if target.suffix == ".npz":
            _write_npz(cache, names, rows, temporary)
        else:
            _write_parquet(cache, names, rows, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return len(rows)


def _write_npz(cache: FeatureCache, names: list[str], rows: np.ndarray, target: Path) -> None:
    arrays: dict[str, Any] = {name: cache.features(name, rows) for name in names}
    with open(target, "wb") as file:
        np.savez(file, path=np.array([cache.paths[row] for row in rows]), **arrays)


def _write_parquet(cache: FeatureCache, names: list[str], rows: np.ndarray, target: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise CallError(
            "parquet needs pyarrow: pip install 'headgraft[parquet]', or export to .npz"
        ) from error
    fields = [pa.field("path", pa.string())]
    for name in names:
        info = cache.layers[name]
        number = pa.float32() if info.dtype == "<f4" else pa.float16()
        fields.append(pa.field(name, pa.list_(number, info.dim)))
    schema = pa.schema(fields)
    with pq.ParquetWriter(target, schema) as file:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            columns = [pa.array([cache.paths[row] for row in some])]
            for name in names:
                flat = np.ascontiguousarray(cache.features(name, some)).reshape(-1)
                columns.append(
                    pa.FixedSizeListArray.from_arrays(pa.array(flat), cache.layers[name].dim)
                )
            file.write_table(pa.table(columns, schema=schema))
