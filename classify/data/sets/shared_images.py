"""The lines of a label table whose images are in every cache of a set."""

from dataclasses import replace

from classify.data.sets.cache_set import CacheSet
from classify.labels.table import FOLDER_SOURCE, LabelTable
from featurize.cache.reader import FeatureCache
from featurize.text import list_first


def keep_shared_images(cache: FeatureCache, table: LabelTable) -> LabelTable:
    """Leave out the lines of a table whose images are not in every cache of a set.

    Parameters
    ----------
    cache : FeatureCache
        A table over a single cache is returned as it is.
    table : LabelTable

    Returns
    -------
    LabelTable
        Its notice says how many images were left out. Images that no cache has remain, for the
        error that names them.
    """
    if not isinstance(cache, CacheSet):
        return table
    unfinished, changed = cache.unfinished, cache.changed
    if table.source != FOLDER_SOURCE:  # whose lines are the images of the set
        unfinished, changed = unfinished & {*table.paths}, changed & {*table.paths}
        kept = [i for i, path in enumerate(table.paths) if path not in unfinished | changed]
        table = _select_lines(table, kept)
    notices = [] if table.notice is None else [table.notice]
    if unfinished:
        notices.append(
            f"{len(unfinished):,} images are left out, not being finished in every cache "
            f"(`featurize info` lists what each of {', '.join(cache.caches)} lacks)"
        )
    if changed:
        notices.append(
            f"{len(changed):,} images are left out, as their bytes differ from one cache to "
            f"another ({list_first(sorted(changed))}): make the caches anew from the same images"
        )
    return replace(table, notice="; ".join(notices) or None)


def _select_lines(table: LabelTable, lines: list[int]) -> LabelTable:
    def select(column: list[str] | None) -> list[str] | None:
        return None if column is None else [column[i] for i in lines]

    return replace(
        table,
        paths=[table.paths[i] for i in lines],
        labels=[table.labels[i] for i in lines],
        splits=select(table.splits),
        groups=select(table.groups),
    )
