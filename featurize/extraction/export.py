"""Export features to ``.npz`` or ``.parquet``."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from featurize.cache.format import MARKED
from featurize.cache.reader import FeatureCache
from featurize.errors import CallError, OutputError
from featurize.files import atomic_write, check_target

ROWS_PER_BLOCK = 8192


def export(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    layers: list[str] | None = None,
) -> int:
    """Write the marked rows of a cache to a ``.npz`` or ``.parquet`` file.

    The ``.npz`` holds ``path`` (str, (n,)) and one array (n, D) per layer, under its dataset name.
    The ``.parquet`` has a column ``path`` and one column of fixed-size lists per layer.

    Parameters
    ----------
    path : path
        The cache.
    output : path
        The file to write; an earlier export is replaced.
    layers : list of str, optional
        Dataset names; default all layers.

    Returns
    -------
    int
        Number of rows written.

    Raises
    ------
    CallError
        If the suffix is neither, or pyarrow is missing for parquet.
    OutputError
        If `output` cannot be written, or is a file that is not an export.
    UnknownLayerError, FileNotFoundError, CacheFormatError
        If the cache lacks a layer, or cannot be opened.
    """
    target = Path(output)
    if target.suffix not in _FORMATS:
        raise CallError(f"-o {target} has to end in .npz or .parquet")
    is_own, write = _FORMATS[target.suffix]
    target = check_target(target, is_own, f"an exported {target.suffix}", OutputError)
    cache = FeatureCache(path)
    names = [cache.layer(name).name for name in layers or cache.layers]
    rows = np.flatnonzero(cache.status == MARKED)
    with atomic_write(target) as file:
        write(cache, names, rows, file)
    return len(rows)


def _is_exported_npz(path: Path) -> bool:
    """Return whether a file looks like our export: first the paths, then arrays."""
    try:
        with ZipFile(path) as file:
            members = file.namelist()
    except (BadZipFile, OSError, ValueError):
        return False
    return members[:1] == ["path.npy"] and all(name.endswith(".npy") for name in members)


def _is_exported_parquet(path: Path) -> bool:
    """Return whether a file looks like our export: paths, then fixed-size lists."""
    pa, pq = _import_pyarrow()
    try:
        schema = pq.read_schema(path)
    except (OSError, ValueError):  # pyarrow's errors derive from these
        return False
    are_lists = all(pa.types.is_fixed_size_list(field.type) for field in list(schema)[1:])
    return bool(schema.names[:1] == ["path"] and are_lists)


def _write_npz(cache: FeatureCache, names: list[str], rows: np.ndarray, file: IO[bytes]) -> None:
    with ZipFile(file, "w", allowZip64=True) as archive:
        _write_paths(cache, rows, archive)
        for name in names:
            info = cache.layers[name]
            blocks = (cache.features(name, block) for block in _split_rows(rows))
            _write_array(archive, name, np.dtype(info.dtype), (len(rows), info.dim), blocks)


def _write_paths(cache: FeatureCache, rows: np.ndarray, archive: ZipFile) -> None:
    """Write the paths, as wide as the longest: read twice, as all may not fit in memory."""
    lengths = (len(path) for block in _split_rows(rows) for path in cache.paths_of(block))
    dtype = np.dtype(f"<U{max(lengths, default=1)}")
    blocks = (np.array(cache.paths_of(block), dtype) for block in _split_rows(rows))
    _write_array(archive, "path", dtype, (len(rows),), blocks)


def _write_array(
    archive: ZipFile,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    blocks: Iterable[np.ndarray],
) -> None:
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for block in blocks:
            member.write(block.tobytes())


def _split_rows(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), ROWS_PER_BLOCK):
        yield rows[start : start + ROWS_PER_BLOCK]


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise CallError(
            "parquet needs pyarrow: pip install 'headgraft[parquet]', or export to .npz"
        ) from error
    return pa, pq


def _write_parquet(
    cache: FeatureCache, names: list[str], rows: np.ndarray, file: IO[bytes]
) -> None:
    pa, pq = _import_pyarrow()
    fields = [pa.field("path", pa.string())]
    for name in names:
        info = cache.layers[name]
        value_type = pa.float32() if info.dtype == "<f4" else pa.float16()
        fields.append(pa.field(name, pa.list_(value_type, info.dim)))
    schema = pa.schema(fields)
    with pq.ParquetWriter(file, schema) as table:
        for block in _split_rows(rows):
            columns = [pa.array(cache.paths_of(block))]
            for name in names:
                values = np.ascontiguousarray(cache.features(name, block)).reshape(-1)
                columns.append(
                    pa.FixedSizeListArray.from_arrays(pa.array(values), cache.layers[name].dim)
                )
            table.write_table(pa.table(columns, schema=schema))


_FORMATS = {
    ".npz": (_is_exported_npz, _write_npz),
    ".parquet": (_is_exported_parquet, _write_parquet),
}
