"""Advise on tasks of any kind of labels."""

from collections.abc import Callable
from typing import Any

from classify.data.features import CacheOrPath, open_cache
from classify.data.targets.spec import TaskSpec
from classify.heads.record import HeadCallback
from classify.labels.table import LabelTable
from classify.labels.targets.kinds import WordsLike
from classify.labels.targets.resolve import TargetsLike
from classify.strategy.advise import Advice, advise_classes
from classify.strategy.layer_depths import LayerDepths
from classify.strategy.strategies import check_size_and_similarity
from classify.strategy.targets.advise import TargetAdvice, advise_targets
from featurize.progress import ignore


def advise(
    cache: CacheOrPath,
    labels: TargetsLike = None,
    *,
    size: str | None = None,
    similarity: str | None = None,
    column: str = "label",
    labels_level: int | None = None,
    kind: str | None = None,
    columns: WordsLike = None,
    order: WordsLike = None,
    test_size: float = 0.2,
    seed: int = 0,
    jobs: int | None = None,
    progress: HeadCallback | None = None,
    report: Callable[[Any], None] = ignore,
) -> Advice | TargetAdvice:
    """Measure which strategy suits a task, by its size and its similarity to the source.

    Test images are not used. The rule is in ``docs/strategies.md``. Measurements are stored next to
    the cache, and shared with `compare`.

    Parameters
    ----------
    cache : path or FeatureCache
        With several layers: ``featurize run ... --layers auto``.
    labels : LabelTable, TargetTable or path of a CSV, optional
        By default those that came with the images, else the folder names.
    size, similarity : str, optional
        ``small`` or ``large``, ``similar`` or ``different``: overrides the measurement, which is
        made all the same.
    column, labels_level, kind, columns, order, test_size, seed
        As in `classify.fit`.
    jobs, progress, report
        As in `classify.compare`; the learning curve's heads are included.

    Returns
    -------
    Advice or TargetAdvice
        The strategy, and the evidence for it; the second for labels that are not one class.

    Raises
    ------
    CallError
        If the cache has only one layer, or `size` or `similarity` is unknown.
    TooFewImagesError
        If there are fewer than two classes, or a class has a single image.
    ClassifyError, FeaturizeError, FileNotFoundError
        As in `classify.fit`.
    """
    check_size_and_similarity(size, similarity)
    opened = open_cache(cache)
    LayerDepths.from_cache(opened)  # raises before anything is trained
    spec = TaskSpec(labels, column, labels_level, test_size, seed, kind, columns, order)
    table = spec.read_any_table(opened)
    if not isinstance(table, LabelTable):
        return advise_targets(
            opened, table, spec, size=size, similarity=similarity, jobs=jobs, report=report
        )
    return advise_classes(
        opened,
        table,
        spec,
        size=size,
        similarity=similarity,
        jobs=jobs,
        progress=progress,
        report=report,
    )
