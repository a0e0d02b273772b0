"""Candidates of `auto`: one strategy each, with what it predicted."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from classify.data.tasks import Task
from classify.evaluation.paired import compare_paired
from classify.evaluation.predictions import HeldOutPredictions
from classify.experiments.results import FitResult

if TYPE_CHECKING:
    from classify.finetuning.run import FineTuneResult


@dataclass(frozen=True)
class Candidate:
    """One strategy that was run.

    Attributes
    ----------
    strategy : str
    what : str
        The layers of a probe (``a+b`` if joined), or which part of the network was tuned, and its
        classifier.
    validation : float, or None
        Accuracy on held-out images.
    accuracy : float, or None
        Accuracy on the test images, the same for all candidates.
    accuracy_ci : (float, float), or None
        Its 95 % interval.
    behind : (float, float, float), or None
        Accuracy of the chosen candidate minus this one's, paired by image, with its 95 % interval.
    epochs : int
        0 for a probe.
    images_run : int
        Number of images that passed through the network or a part of it, for the cache or in
        training.
    seconds : float
        Wall-clock time without making the cache.
    """

    strategy: str
    what: str
    validation: float | None
    accuracy: float | None
    accuracy_ci: tuple[float, float] | None
    behind: tuple[float, float, float] | None
    epochs: int
    images_run: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Tried:
    """A candidate with what it predicted.

    Attributes
    ----------
    candidate : Candidate
    test : HeldOutPredictions, or None
        For the test images; None if there are none.
    validated : dict of int to bool
        Whether each validation image was predicted correctly, by row of the cache.
    """

    candidate: Candidate
    test: HeldOutPredictions | None
    validated: dict[int, bool] = field(default_factory=dict)

    def beside(self, chosen: "Tried", task: Task, seed: int) -> Candidate:
        """Return the candidate with its difference in test accuracy from the chosen one.

        Parameters
        ----------
        chosen : Tried
            It stays without a difference.
        task : Task
            Gives the units of the images.
        seed : int
            As in `classify.evaluation.paired.compare_paired`.

        Returns
        -------
        Candidate
        """
        if self.test is None or chosen.test is None or self is chosen:
            return self.candidate
        units = task.units_for(chosen.test.rows)
        difference = compare_paired(chosen.test, self.test, units, seed=seed)
        return replace(self.candidate, behind=(difference.value, difference.low, difference.high))


def describe_probe(strategy: str, result: FitResult, n_images: int) -> Tried:
    """Describe a probe as a candidate.

    Parameters
    ----------
    strategy : str
        ``linear-probe`` or ``truncated-probe``.
    result : FitResult
    n_images : int
        Number of images in the cache.

    Returns
    -------
    Tried
    """
    record, validation = result.record, result.validation
    candidate = Candidate(
        strategy=strategy,
        what=record.layer,
        validation=record.validation,
        accuracy=record.accuracy,
        accuracy_ci=record.accuracy_ci,
        behind=None,
        epochs=0,
        images_run=n_images,
        seconds=record.seconds,
    )
    if validation is None:
        return Tried(candidate, result.test)
    rows, correct = validation.rows.tolist(), validation.correct.tolist()
    return Tried(candidate, result.test, dict(zip(rows, correct, strict=True)))


def describe_network(result: "FineTuneResult") -> Tried:
    """Describe a trained network as a candidate.

    Parameters
    ----------
    result : FineTuneResult

    Returns
    -------
    Tried
    """
    candidate = Candidate(
        strategy=result.strategy,
        what=f"{result.tune}, {result.classifier}",
        validation=result.validation,
        accuracy=result.accuracy,
        accuracy_ci=result.accuracy_ci,
        behind=None,
        epochs=result.epochs,
        images_run=result.images_run,
        seconds=result.seconds,
    )
    return Tried(candidate, result.predictions, result.validated)
