"""Train a network: a warm-up, a cosine to nothing, an early stop, a checkpoint every epoch."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from classify.checkpoints import Checkpoint, keep_checkpoint
from classify.crew import Crew
from classify.errors import CallError, Diverged
from classify.examples import Maps, Pictures, Shuffled, loader
from classify.nets import Net

DECAY = 0.7  # of the learning rate from one stage to the stage before it
WEIGHT_DECAY = 0.02
WARM_UP = 0.1  # of all steps, though at most one epoch
CLIP = 1.0  # the greatest norm of a gradient


@dataclass(frozen=True)
class Course:
    """How a network is trained.

    Attributes
    ----------
    epochs : int
        At most.
    batch_size : int
        Over all processes together.
    learning_rate : float
        The highest, of classifier and deepest stage; AdamW's (I. Loshchilov and F. Hutter, 2019,
        "Decoupled weight decay regularization", ICLR).
    decay : float
        Each stage before has the next one's learning rate times this.
    patience : int
        Epochs without a lower validation loss before it ends.
    mixup : float
        The alpha of mixup (H. Zhang et al., 2018, "mixup: beyond empirical risk minimization",
        ICLR); 0 is none.
    seed : int
    """

    epochs: int
    batch_size: int
    learning_rate: float
    decay: float = DECAY
    patience: int = 5
    mixup: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Refuse what makes no sense: CallError."""
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise CallError(f"{name.replace('_', ' ')} is 1 or more, not {getattr(self, name)}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise CallError(f"the learning rate is above 0, not {self.learning_rate}")
        if not (self.mixup >= 0 and math.isfinite(self.mixup)):
            raise CallError(f"mixup is 0 or above, not {self.mixup}")

    def rate_at(self, step: int, steps: int, an_epoch: int) -> float:
        """The learning rate at one of all steps, as a share of the highest."""
        warm = max(1, min(an_epoch, round(WARM_UP * steps)))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass(frozen=True)
class Epoch:
    """One epoch: its number from 1, losses, validation accuracy, and seconds."""

    number: int
    loss: float
    validation_loss: float
    validation: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As a dict."""
        return asdict(self)


@dataclass(frozen=True)
class Step:
    """Where things stand, for a progress bar.

    Attributes
    ----------
    what : str
        What is going on: ``reading images``, ``frozen pass`` or ``epoch 3 of 15``.
    done, total : int
        Of it; of all epochs together, in training.
    history : list of Epoch
        Those that are over.
    """

    what: str
    done: int
    total: int
    history: Sequence[Epoch] = ()


Report = Callable[[Step], None]


def descend(
    net: Net,
    training: Pictures | Maps,
    validation: Pictures | Maps,
    course: Course,
    *,
    crew: Crew,
    weights: np.ndarray | None = None,
    checkpoint: tuple[Path, str] | None = None,
    begun: Checkpoint | None = None,
    deadline: float | None = None,
    report: Report = lambda _: None,
) -> list[Epoch]:
    """Train a network; it is left as it was after its best epoch, by validation loss.

    Parameters
    ----------
    net : Net
        On the crew's device.
    training, validation : Pictures or Maps
    course : Course
    crew : Crew
    weights : float32 array of shape (K,), optional
        Of the classes in the loss.
    checkpoint : (path, key), optional
        Written after every epoch; the key says what is trained, and how.
    begun : Checkpoint, optional
        Goes on from there, as if it had not stopped.
    deadline : float, optional
        Of `time.monotonic`: no epoch is begun that would pass it.
    report : callable

    Returns
    -------
    list of Epoch
        All of them.

    Raises
    ------
    Diverged
        If the loss is no longer a number.
    """
    groups = net.groups(course.learning_rate, course.decay, WEIGHT_DECAY)
    optimiser = torch.optim.AdamW(groups, fused=True)
    highest = [group["lr"] for group in optimiser.param_groups]
    runner = crew.wrapped(net)
    mix = _mixup(course, net.classifier.out.out_features)
    fair = None if weights is None else torch.from_numpy(weights).to(crew.device)
    history: list[Epoch] = []
    best = _copied(net)
    if begun is not None:
        net.load_state_dict(begun.learnt, strict=False)
        begun.restore(optimiser)
        history = [Epoch(**epoch) for epoch in begun.history]
        best = {name: tensor.to(crew.device) for name, tensor in begun.best.items()}
    an_epoch = len(loader_of(training, course, crew, 0))
    steps = course.epochs * an_epoch
    while not crew.agreed(_ends(history, course, deadline)):
        number, started = len(history), time.monotonic()
        # Dropout in an epoch is the same whether or not training was stopped before it.
        torch.manual_seed(_seed(course.seed, number, crew.rank))
        net.train()
        losses = []
        for k, (x, y) in enumerate(loader_of(training, course, crew, number)):
            x, y = x.to(crew.device, non_blocking=True), y.to(crew.device, non_blocking=True)
            step = number * an_epoch + k
            share = course.rate_at(step, steps, an_epoch)
            for group, rate in zip(optimiser.param_groups, highest, strict=True):
                group["lr"] = rate * share
            target: Tensor = y
            if mix is not None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(_seed(course.seed, step))
                    # It takes floats of four axes alone, and mixes any two rows alike.
                    rows, target = mix(x.float().reshape(len(x), 1, 1, -1), y)
                    x = rows.view(x.shape)
            with crew.mixed():
                loss = nn.functional.cross_entropy(runner(x), target, fair)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise _diverged(f"the loss is {value} in epoch {number + 1}, batch {k + 1}", course)
            losses.append(value)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimiser.step()
            report(Step(f"epoch {number + 1} of {course.epochs}", step + 1, steps, history))
        scores = score(net, validation, course.batch_size, crew)
        truth = torch.from_numpy(np.asarray(validation.y))
        judged = float(nn.functional.cross_entropy(torch.from_numpy(scores), truth))
        if not math.isfinite(judged):
            raise _diverged(f"the validation loss is {judged} after epoch {number + 1}", course)
        right = float((scores.argmax(axis=1) == validation.y).mean())
        seconds = time.monotonic() - started
        history.append(Epoch(number + 1, float(np.mean(losses)), judged, right, seconds))
        if min(history, key=lambda epoch: epoch.validation_loss) is history[-1]:
            best = _copied(net)
        if checkpoint is not None and crew.rank == 0:
            path, key = checkpoint
            about = [epoch.to_json() for epoch in history]
            keep_checkpoint(path, key, Checkpoint.of(net.learnt(), best, optimiser, about))
        report(Step(f"epoch {number + 1} of {course.epochs}", step + 1, steps, history))
    net.load_state_dict(best, strict=False)
    return history


def loader_of(examples: Pictures | Maps, course: Course, crew: Crew, epoch: int) -> Any:
    """The batches of one epoch, this process's share."""
    order = Shuffled(len(examples), epoch, course.seed, crew.rank, crew.world)
    return loader(examples, max(1, course.batch_size // crew.world), crew.device, order)


def score(
    net: Net,
    examples: Pictures | Maps,
    batch_size: int,
    crew: Crew,
    *,
    embeddings: bool = False,
    report: Report = lambda _: None,
) -> np.ndarray:
    """What a network says of examples, in order: scores (n, K), or embeddings (n, D), float32."""
    net.eval()
    found: list[np.ndarray] = []
    with torch.inference_mode(), crew.mixed():
        for x, _ in loader(examples, batch_size, crew.device):
            x = x.to(crew.device, non_blocking=True)
            found.append((net.embed(x) if embeddings else net(x)).float().cpu().numpy())
            report(Step("frozen pass", sum(map(len, found)), len(examples)))
    return np.concatenate(found)


def _copied(net: Net) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.learnt().items()}


def _ends(history: list[Epoch], course: Course, deadline: float | None) -> bool:
    """Whether training is over: by number, for want of progress, or for want of time."""
    if not history:
        return False
    stalled = len(history) - 1 - int(np.argmin([epoch.validation_loss for epoch in history]))
    longest = max(epoch.seconds for epoch in history)
    late = deadline is not None and time.monotonic() + longest > deadline
    return late or len(history) >= course.epochs or stalled >= course.patience


def _seed(*numbers: int) -> int:
    return hash(numbers) & 0x7FFFFFFF


def _diverged(what: str, course: Course) -> Diverged:
    return Diverged(
        f"{what}: training has gone astray. Lower --learning-rate (it is {course.learning_rate:g})"
    )


def _mixup(course: Course, n_classes: int) -> v2.MixUp | None:
    return v2.MixUp(alpha=course.mixup, num_classes=n_classes) if course.mixup else None
