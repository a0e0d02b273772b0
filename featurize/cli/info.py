"""What `featurize info` tells of a cache."""

from pathlib import Path
from typing import Any

from featurize.cache.parts.index import read_index
from featurize.cache.parts.opening import find_missing_parts
from featurize.cache.reader import FeatureCache
from featurize.extraction.completion.label_table import label_table_path
from featurize.sources.folder import FOLDER
from featurize.text import list_first, to_printable

MAX_SHOWN_FAILURES = 20


def open_made_parts(path: Path) -> FeatureCache:
    """Open a cache; of a cache of parts, those that are made.

    Parameters
    ----------
    path : Path

    Returns
    -------
    FeatureCache

    Raises
    ------
    FileNotFoundError, CacheFormatError, CacheUnreachableError
        As `FeatureCache`; a missing part is an error only if all are missing.
    """
    if not path.is_dir():
        return FeatureCache(path)
    index = read_index(path)
    missing = find_missing_parts(path, index)
    return FeatureCache.open_some(path, {part.file for part in index.parts} - {*missing})


def describe_cache(cache: FeatureCache) -> dict[str, Any]:
    """Describe a cache for JSON.

    Parameters
    ----------
    cache : FeatureCache

    Returns
    -------
    dict of str to object
    """
    if cache.index is None:
        _ = cache.paths  # says what is wrong with them, if anything is
    extractor = cache.extractor
    return {
        "cache": str(cache.path),
        "format_version": cache.format_version,
        "rows": cache.n_rows,
        "status": cache.counts,
        "root": cache.root,
        "source": cache.source.get("kind", FOLDER),
        "containers": len(cache.containers),
        "labels": _find_labels(cache),
        "parts": _describe_parts(cache),
        "include": list(cache.include),
        "exclude": list(cache.exclude),
        "backbone": extractor.backbone,
        "weights": extractor.weights,
        "weights_sha256": extractor.weights_sha256,
        "licence": extractor.environment.get("licence"),
        "preprocess": extractor.preprocess.to_dict(),
        "precision": extractor.precision,
        "layers": [
            {
                "name": layer.name,
                "layer": layer.layer,
                "pool": layer.pool,
                "dim": layer.dim,
                "dtype": "float32" if layer.dtype == "<f4" else "float16",
                "map_shape": list(layer.map_shape),
                "fingerprint": layer.fingerprint,
            }
            for layer in cache.layers.values()
        ],
        "failures": cache.failures,
    }


def _find_labels(cache: FeatureCache) -> str:
    """Find the table of the labels that came with the images; of parts, the pattern of them."""
    if not any(label_table_path(file).exists() for file in cache.files):
        return ""
    pattern = cache.path if cache.index is None else cache.path / "*.h5"
    return str(label_table_path(pattern))


def _describe_parts(cache: FeatureCache) -> dict[str, Any] | None:
    if cache.index is None:
        return None
    return {
        "total": len(cache.index.parts),
        "made": len(cache.files),
        "part_rows": cache.index.part_rows,
        "missing": find_missing_parts(cache.path, cache.index),
    }


def _format_parts(total: int, made: int, part_rows: int, missing: list[str]) -> str:
    text = f"parts     {total:,}, of about {part_rows:,} rows each"
    if made == total:
        return text
    verb = "is" if made == 1 else "are"
    return (
        f"{text}: {made:,} {verb} made, and what follows is of these. `featurize run` with the "
        f"same images makes the others ({list_first(missing)})"
    )


def show_cache(cache: FeatureCache) -> None:
    """Print what is in a cache.

    Parameters
    ----------
    cache : FeatureCache
    """
    extractor, told = cache.extractor, describe_cache(cache)
    print(f"{to_printable(str(cache.path))}: feature cache, format {cache.format_version}")
    if told["parts"]:
        print(_format_parts(**told["parts"]))
    row_counts = ", ".join(f"{count:,} {status}" for status, count in told["status"].items())
    print(f"rows      {cache.n_rows:,}: {row_counts}")
    n_containers = f", {len(cache.containers):,} of them" if len(cache.containers) > 1 else ""
    print(
        f"source    {to_printable(cache.root)}: {to_printable(str(told['source']))}{n_containers}"
    )
    if told["labels"]:
        print(f"labels    {to_printable(told['labels'])}")
    sha256 = to_printable(extractor.weights_sha256[:12])
    weights = f"weights {to_printable(extractor.weights)} ({sha256}...)"
    print(f"backbone  {to_printable(extractor.backbone)}, {weights}")
    if licence := extractor.environment.get("licence"):
        print(f"licence   {to_printable(str(licence))}")
    print(f"images    {extractor.preprocess.describe()}")
    for option, patterns in (("include", cache.include), ("exclude", cache.exclude)):
        for pattern in patterns:
            print(f"{option}   {to_printable(pattern)}")
    for layer in cache.layers.values():
        shape = "x".join(map(str, layer.map_shape))
        pooled = f"{layer.dim} numbers from {shape}, pool {to_printable(layer.pool)}"
        print(f"layer     {to_printable(layer.name)}: {pooled}")
    for path, reason in list(told["failures"].items())[:MAX_SHOWN_FAILURES]:
        print(f"failed    {to_printable(path)}: {reason}")
