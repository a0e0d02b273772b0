"""Whether a candidate that was not saved validates better, and the command that saves it."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classify.data.targets.spec import TaskSpec
from classify.data.tasks import Task
from classify.evaluation.paired import compare_correctness
from classify.finetuning.config import TrainConfig
from classify.strategy.strategies import probe_command
from classify.strategy.tried.candidates import Tried
from featurize.cache.reader import FeatureCache
from featurize.sources.stores.addresses import redact


@dataclass(frozen=True)
class BetterCandidate:
    """A candidate that validates better than the saved one.

    Attributes
    ----------
    strategy, what : str
        As in `Candidate`.
    ahead : (float, float, float)
        Its validation accuracy minus the saved one's, on the same images, with its 95 % interval.
    n_images : int
        The number of these images.
    certain : bool
        Whether the interval excludes 0.
    seconds : float
        Wall-clock time of its training.
    command : str
        The shell command that trains and saves it.
    """

    strategy: str
    what: str
    ahead: tuple[float, float, float]
    n_images: int
    certain: bool
    seconds: float
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


def find_better(
    tried: Sequence[Tried],
    task: Task,
    seed: int,
    commands: "CandidateCommands",
) -> BetterCandidate | None:
    """Find the candidate that validates better than the chosen one, by most.

    Two candidates are compared on the images by which both were validated: a probe is validated by
    all images to learn from in turn, a network by a tenth of them.

    Parameters
    ----------
    tried : sequence of Tried
        The chosen one first.
    task : Task
        Gives the units of the images.
    seed : int
        As in `classify.evaluation.paired.compare_correctness`.
    commands : CandidateCommands

    Returns
    -------
    BetterCandidate, or None
        None if no candidate validates better.
    """
    chosen, *others = tried
    better: list[BetterCandidate] = []
    for one in others:
        rows = sorted(chosen.validated.keys() & one.validated.keys())
        if not rows:
            continue
        correct, correct_chosen = (
            np.array([validated[row] for row in rows])
            for validated in (one.validated, chosen.validated)
        )
        units = task.units_for(np.array(rows))
        difference = compare_correctness(correct, correct_chosen, units, seed=seed)
        if difference.value > 0:
            candidate = one.candidate
            better.append(
                BetterCandidate(
                    strategy=candidate.strategy,
                    what=candidate.what,
                    ahead=(difference.value, difference.low, difference.high),
                    n_images=len(rows),
                    certain=difference.low > 0,
                    seconds=candidate.seconds,
                    command=commands.format(candidate.strategy, candidate.what),
                )
            )
    return max(better, key=lambda one: one.ahead[0], default=None)


@dataclass(frozen=True)
class CandidateCommands:
    """Shell commands that train and save a candidate.

    Attributes
    ----------
    images, output : path or URL
        As given to `auto`. The command writes beside `output`.
    cache : FeatureCache
    spec : TaskSpec
    device : str
    classifier : str
        The classifier of a network that is retrained.
    training : mapping of str to object
        Options of `FineTuneClassifier`, as given to `auto`.
    """

    images: str | os.PathLike[str]
    output: str | os.PathLike[str]
    cache: FeatureCache
    spec: TaskSpec
    device: str
    classifier: str
    training: Mapping[str, Any]

    def format(self, strategy: str, what: str) -> str:
        """Format the command of a candidate.

        Parameters
        ----------
        strategy, what : str
            As in `Candidate`.

        Returns
        -------
        str
            Quoted for a shell.
        """
        output = Path(self.output)
        target = str(output.with_name(f"{output.stem}-{strategy}{output.suffix}"))
        options = self.spec.as_command_options()
        if strategy.endswith("-probe"):
            return probe_command(self.cache, what.split("+"), options, target)
        images = redact(os.fspath(self.images))  # a URL may have credentials
        words = ["classify", "finetune", images, "--cache", str(self.cache.path)]
        words += options
        if strategy == "retrain":
            words += ["--classifier", self.classifier]
        defaults = {"device": "auto", "learning_rate": None, "batch_norm": None}
        for name, value in {**self.training, "device": self.device}.items():
            if value != defaults.get(name, getattr(TrainConfig, name, None)):
                words += [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join([*words, "-o", target])
