"""What `featurize info` tells of a cache."""

from typing import Any

from featurize.cache.reader import FeatureCache
from featurize.extraction.completion.label_table import label_table_path
from featurize.sources.folder import FOLDER
from featurize.text import to_printable

MAX_SHOWN_FAILURES = 20


def describe_cache(cache: FeatureCache) -> dict[str, Any]:
    """Describe a cache for JSON.

    Parameters
    ----------
    cache : FeatureCache

    Returns
    -------
    dict of str to object
    """
    extractor, labels = cache.extractor, label_table_path(cache.path)
    return {
        "cache": str(cache.path),
        "format_version": cache.format_version,
        "rows": cache.n_rows,
        "status": cache.counts,
        "root": cache.root,
        "source": cache.source.get("kind", FOLDER),
        "containers": len(cache.containers),
        "labels": str(labels) if labels.exists() else "",
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


def show_cache(cache: FeatureCache) -> None:
    """Print what is in a cache.

    Parameters
    ----------
    cache : FeatureCache
    """
    extractor, told = cache.extractor, describe_cache(cache)
    print(f"{to_printable(str(cache.path))}: feature cache, format {cache.format_version}")
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
