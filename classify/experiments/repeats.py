"""Results of a comparison over several draws of training images."""

from dataclasses import asdict, dataclass, field
from typing import Any

from classify.data.tasks import Task
from classify.evaluation.metrics import Interval
from classify.evaluation.paired import Difference
from classify.heads.record import CACHE_FIELDS, qualify_layers

INTERVAL_NOTES = {
    "splits": (
        "Intervals cover the draw of training images as well as that of test images, corrected "
        "for splits that share images (Nadeau and Bengio, 2003)."
    ),
    "folds": (
        "Every image is tested once. Intervals cover the draw of test images, and not that of "
        "training images: --repeats draws the folds anew."
    ),
    "repeated folds": (
        "Every image is tested once in each repeat. Intervals cover the draw of training images "
        "as well as that of test images, corrected for folds that share images (Nadeau and "
        "Bengio, 2003; Bouckaert and Frank, 2004)."
    ),
    "shots": (
        "Intervals cover the draw of training images, by the seeds, as well as that of test "
        "images, which are the same for all."
    ),
}
"""What the intervals of each kind of draws cover."""


@dataclass(frozen=True)
class HeadSummary:
    """Result of one head on one choice of layers, over all draws.

    Attributes
    ----------
    task, head, layer : str
        As in `classify.heads.record.HeadResult`.
    shots : int, or None
        Number of training images per class.
    n_train, n_test : int
        Mean number of training and test images of a draw. With folds that are drawn once, `n_test`
        is the number of all images.
    accuracy : float
        Mean over the draws; with folds that are drawn once, over all images.
    accuracy_ci : (float, float)
        95 % interval, see `INTERVAL_NOTES`.
    accuracy_std : float
        Standard deviation over the draws.
    validation : float, or None
        Mean over the draws; None where a draw could not be validated.
    difference : Difference, or None
        Accuracy of the task's best head minus this one's, on the same draws. None for the best head
        itself, and where there is no best.
    worse : bool, or None
        Whether the best head is ahead by more than chance, with Holm's correction for the number of
        heads.
    runs : list of dict
        By draw: ``seed``, ``fold``, and of its record ``n_train``, ``n_test``, ``settings``,
        ``validation`` and the metrics.
    cache : str, or None
    columns, row_bytes : int, or None
    gmacs : float, or None
        As in `classify.heads.record.HeadResult`.
    """

    task: str
    head: str
    layer: str
    shots: int | None
    n_train: int
    n_test: int
    accuracy: float
    accuracy_ci: Interval
    accuracy_std: float
    validation: float | None
    difference: Difference | None
    worse: bool | None
    runs: list[dict[str, Any]]
    cache: str | None = None
    columns: int | None = None
    row_bytes: int | None = None
    gmacs: float | None = None

    @property
    def place(self) -> str:
        """The layers, as in `classify.heads.record.HeadResult`."""
        return qualify_layers(self.layer, self.cache)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as a flat dict for JSON.

        Returns
        -------
        dict
            The attributes by name. ``difference`` is a number, and its ``difference_ci``,
            ``p_value`` and ``distinguishable`` are further keys. The keys ``cache``, ``columns``,
            ``row_bytes`` and ``gmacs`` are there where several caches are compared.
        """
        content = asdict(self) | {"accuracy_ci": list(self.accuracy_ci)}
        if self.cache is None:
            content = {k: v for k, v in content.items() if k not in CACHE_FIELDS}
        difference = self.difference
        return content | {
            "difference": None if difference is None else difference.value,
            "difference_ci": None if difference is None else [difference.low, difference.high],
            "p_value": None if difference is None else difference.p_value,
            "distinguishable": None if difference is None else difference.distinguishable,
        }


@dataclass(frozen=True)
class RepeatedComparison:
    """Result of a comparison over several draws.

    Attributes
    ----------
    rows : list of HeadSummary
        By task, head, layers and shots, in the order of the request.
    best_per_task : dict of str to HeadSummary
        By task name, the highest mean validation. Of equals, the one with fewer columns, then the
        earlier one. With shots, only the rows of the largest number of shots count. A task without
        any validation has none.
    kind : str
        What was drawn: ``splits``, ``folds``, ``repeated folds`` or ``shots``.
    seeds, shots : tuple of int
        Seeds of the draws; training images per class, where these were asked for.
    folds : int, or None
        Number of folds, where these were asked for.
    tasks : list of Task
        The label tables over the cache.
    n_heads : int
        Number of heads trained, over all draws.
    n_reused : int
        Number of heads whose stored results were reused.
    notices : list of str
        Notices for the user.
    seconds : float
        Wall-clock time.
    caches : dict of str to str
        File of each cache by short name; empty where one cache is compared.
    """

    rows: list[HeadSummary]
    best_per_task: dict[str, HeadSummary]
    kind: str
    seeds: tuple[int, ...]
    shots: tuple[int, ...]
    folds: int | None
    tasks: list[Task]
    n_heads: int
    n_reused: int
    notices: list[str]
    seconds: float
    caches: dict[str, str] = field(default_factory=dict)

    @property
    def interval_note(self) -> str:
        """What the intervals cover, in a sentence."""
        return INTERVAL_NOTES[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a dict for JSON.

        Returns
        -------
        dict
            ``kind``, ``seeds``, ``shots`` and ``folds``; ``intervals``, a sentence on what the
            intervals cover; ``rows`` as `HeadSummary.to_dict` returns them; ``best_per_task``, the
            same by task name; with several caches, ``caches``.
        """
        content = {
            "kind": self.kind,
            "seeds": list(self.seeds),
            "shots": list(self.shots) or None,
            "folds": self.folds,
            "intervals": self.interval_note,
            "rows": [row.to_dict() for row in self.rows],
            "best_per_task": {task: row.to_dict() for task, row in self.best_per_task.items()},
        }
        return content | ({"caches": self.caches} if self.caches else {})
