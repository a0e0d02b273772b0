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

from classify.errors import CallError, DivergedError
from classify.finetuning.checkpoint import Checkpoint, save_checkpoint
from classify.finetuning.datasets import (
    ActivationDataset,
    EpochSampler,
    ImageDataset,
    make_dataloader,
)
from classify.finetuning.distributed import Distributed
from classify.finetuning.network import FineTuneNetwork

LAYER_DECAY = 0.7  # of the learning rate from one stage to the stage before it
WEIGHT_DECAY = 0.02
WARMUP_SHARE = 0.1  # of all steps, though at most one epoch
MAX_GRAD_NORM = 1.0  # the greatest norm of a gradient


@dataclass(frozen=True)
class TrainConfig:
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
    layer_decay: float = LAYER_DECAY
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

    def compute_lr_scale(self, step: int, n_steps: int, steps_per_epoch: int) -> float:
        """The learning rate at one of all steps, as a share of the highest."""
        warm = max(1, min(steps_per_epoch, round(WARMUP_SHARE * n_steps)))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, n_steps - warm)))


@dataclass(frozen=True)
class Epoch:
    """One epoch: its number from 1, losses, validation accuracy, and seconds."""

    number: int
    loss: float
    validation_loss: float
    validation: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As a dict."""
        return asdict(self)


@dataclass(frozen=True)
class TrainProgress:
    """Where things stand, as a `featurize.progress.Progress`.

    Attributes
    ----------
    stage : str
        What is going on: ``reading images``, ``frozen pass`` or ``epoch 3 of 15``.
    done, total : int
        Of it; of all epochs together, in training.
    history : list of Epoch
        Those that are over.
    """

    stage: str
    done: int
    total: int
    history: Sequence[Epoch] = ()

    @property
    def note(self) -> str:
        """How the last epoch ended: ``validation 0.912, loss 0.310``."""
        if not self.history:
            return ""
        last = self.history[-1]
        return f"validation {last.validation:.3f}, loss {last.validation_loss:.3f}"


ProgressCallback = Callable[[TrainProgress], None]


def train_network(
    net: FineTuneNetwork,
    training: ImageDataset | ActivationDataset,
    validation: ImageDataset | ActivationDataset,
    config: TrainConfig,
    *,
    distributed: Distributed,
    class_weights: np.ndarray | None = None,
    checkpoint: tuple[Path, str] | None = None,
    resume_from: Checkpoint | None = None,
    deadline: float | None = None,
    report: ProgressCallback = lambda _: None,
) -> list[Epoch]:
    """Train a network; it is left as it was after its best epoch, by validation loss.

    Parameters
    ----------
    net : FineTuneNetwork
        On the crew's device.
    training, validation : ImageDataset or Maps
    course : TrainConfig
    crew : Distributed
    weights : float32 array of shape (K,), optional
        Of the classes in the loss.
    checkpoint : (path, key), optional
        Written after every epoch; the key says what is trained, and how.
    resume_from : Checkpoint, optional
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
    groups = net.param_groups(config.learning_rate, config.layer_decay, WEIGHT_DECAY)
    optimiser = torch.optim.AdamW(groups, fused=True)
    highest = [group["lr"] for group in optimiser.param_groups]
    runner = distributed.wrap_ddp(net)
    mix = _make_mixup(config, net.classifier.out.out_features)
    fair = None if class_weights is None else torch.from_numpy(class_weights).to(distributed.device)
    history: list[Epoch] = []
    best = _clone_state(net)
    if resume_from is not None:
        net.load_state_dict(resume_from.learnt, strict=False)
        resume_from.restore_optimizer(optimiser)
        history = [Epoch(**epoch) for epoch in resume_from.history]
        best = {name: tensor.to(distributed.device) for name, tensor in resume_from.best.items()}
    an_epoch = len(make_epoch_dataloader(training, config, distributed, 0))
    steps = config.epochs * an_epoch
    while not distributed.broadcast(_should_stop(history, config, deadline)):
        number, started = len(history), time.monotonic()
        # Dropout in an epoch is the same whether or not training was stopped before it.
        torch.manual_seed(_derive_seed(config.seed, number, distributed.rank))
        net.train()
        losses = []
        for k, (x, y) in enumerate(make_epoch_dataloader(training, config, distributed, number)):
            x, y = (
                x.to(distributed.device, non_blocking=True),
                y.to(distributed.device, non_blocking=True),
            )
            step = number * an_epoch + k
            share = config.compute_lr_scale(step, steps, an_epoch)
            for group, rate in zip(optimiser.param_groups, highest, strict=True):
                group["lr"] = rate * share
            target: Tensor = y
            if mix is not None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(_derive_seed(config.seed, step))
                    # It takes floats of four axes alone, and mixes any two rows alike.
                    rows, target = mix(x.float().reshape(len(x), 1, 1, -1), y)
                    x = rows.view(x.shape)
            with distributed.autocast():
                loss = nn.functional.cross_entropy(runner(x), target, fair)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise _make_diverged_error(
                    f"the loss is {value} in epoch {number + 1}, batch {k + 1}", config
                )
            losses.append(value)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), MAX_GRAD_NORM)
            optimiser.step()
            report(
                TrainProgress(f"epoch {number + 1} of {config.epochs}", step + 1, steps, history)
            )
        scores = run_inference(net, validation, config.batch_size, distributed)
        truth = torch.from_numpy(np.asarray(validation.y))
        judged = float(nn.functional.cross_entropy(torch.from_numpy(scores), truth))
        if not math.isfinite(judged):
            raise _make_diverged_error(
                f"the validation loss is {judged} after epoch {number + 1}", config
            )
        right = float((scores.argmax(axis=1) == validation.y).mean())
        seconds = time.monotonic() - started
        history.append(Epoch(number + 1, float(np.mean(losses)), judged, right, seconds))
        if min(history, key=lambda epoch: epoch.validation_loss) is history[-1]:
            best = _clone_state(net)
        if checkpoint is not None and distributed.rank == 0:
            path, key = checkpoint
            about = [epoch.to_dict() for epoch in history]
            save_checkpoint(
                path, key, Checkpoint.capture(net.trainable_state(), best, optimiser, about)
            )
        report(TrainProgress(f"epoch {number + 1} of {config.epochs}", step + 1, steps, history))
    net.load_state_dict(best, strict=False)
    return history


def make_epoch_dataloader(
    dataset: ImageDataset | ActivationDataset,
    config: TrainConfig,
    distributed: Distributed,
    epoch: int,
) -> Any:
    """The batches of one epoch, this process's share."""
    order = EpochSampler(len(dataset), epoch, config.seed, distributed.rank, distributed.world_size)
    return make_dataloader(
        dataset, max(1, config.batch_size // distributed.world_size), distributed.device, order
    )


def run_inference(
    net: FineTuneNetwork,
    dataset: ImageDataset | ActivationDataset,
    batch_size: int,
    distributed: Distributed,
    *,
    embeddings: bool = False,
    report: ProgressCallback = lambda _: None,
) -> np.ndarray:
    """What a network says of examples, in order: scores (n, K), or embeddings (n, D), float32."""
    net.eval()
    found: list[np.ndarray] = []
    with torch.inference_mode(), distributed.autocast():
        for x, _ in make_dataloader(dataset, batch_size, distributed.device):
            x = x.to(distributed.device, non_blocking=True)
            found.append((net.embed(x) if embeddings else net(x)).float().cpu().numpy())
            report(TrainProgress("frozen pass", sum(map(len, found)), len(dataset)))
    return np.concatenate(found)


def _clone_state(net: FineTuneNetwork) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.trainable_state().items()}


def _should_stop(history: list[Epoch], config: TrainConfig, deadline: float | None) -> bool:
    """Whether training is over: by number, for want of progress, or for want of time."""
    if not history:
        return False
    stalled = len(history) - 1 - int(np.argmin([epoch.validation_loss for epoch in history]))
    longest = max(epoch.seconds for epoch in history)
    late = deadline is not None and time.monotonic() + longest > deadline
    return late or len(history) >= config.epochs or stalled >= config.patience


def _derive_seed(*numbers: int) -> int:
    return hash(numbers) & 0x7FFFFFFF


def _make_diverged_error(what: str, config: TrainConfig) -> DivergedError:
    return DivergedError(
        f"{what}: training has gone astray. Lower --learning-rate (it is {config.learning_rate:g})"
    )


def _make_mixup(config: TrainConfig, n_classes: int) -> v2.MixUp | None:
    return v2.MixUp(alpha=config.mixup, num_classes=n_classes) if config.mixup else None
