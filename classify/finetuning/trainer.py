"""Train a network: warm-up, cosine decay, early stopping, and a checkpoint after every epoch."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms import v2

from classify.errors import DivergedError
from classify.finetuning.checkpoint import Checkpoint, save_checkpoint
from classify.finetuning.config import TrainConfig
from classify.finetuning.datasets import ActivationDataset, ImageDataset
from classify.finetuning.distributed import Distributed
from classify.finetuning.network import FineTuneNetwork

WEIGHT_DECAY = 0.02
WARMUP_SHARE = 0.1  # of all steps, though at most one epoch
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes
    ----------
    number : int
        From 1.
    loss, validation_loss : float
        Mean cross-entropy, in nats.
    validation : float
        Accuracy on the validation part.
    seconds : float
    """

    number: int
    loss: float
    validation_loss: float
    validation: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The same as a dict."""
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
    checkpoint: tuple[Path, str] | None = None,
    resume_from: Checkpoint | None = None,
    deadline: float | None = None,
    report: ProgressCallback = lambda _: None,
) -> list[Epoch]:
    """Train a network and leave it as it was after its best epoch, by validation loss.

    Parameters
    ----------
    net : FineTuneNetwork
        On the device of `distributed`.
    training, validation : ImageDataset or ActivationDataset
    config : TrainConfig
    distributed : Distributed
    checkpoint : (Path, str), optional
        Where to write a checkpoint after every epoch, and its key: what is trained, and how.
    resume_from : Checkpoint, optional
        Where to go on. The result is that of an unbroken training.
    deadline : float, optional
        A time of `time.monotonic`, in seconds. No epoch is begun that would end later.
    report : callable

    Returns
    -------
    list of Epoch
        All of them, those of `resume_from` included.

    Raises
    ------
    DivergedError
        If the loss is no longer a number.
    OutputError
        If the checkpoint cannot be written.
    """
    trainer = _Trainer(net, training, config, distributed, resume_from, report)
    history = trainer.history
    while not distributed.broadcast(_should_stop(history, config, deadline)):
        started = time.monotonic()
        loss = trainer.train_epoch()
        validation_loss, accuracy = trainer.validate(validation)
        seconds = time.monotonic() - started
        history.append(Epoch(len(history) + 1, loss, validation_loss, accuracy, seconds))
        if min(history, key=lambda epoch: epoch.validation_loss) is history[-1]:
            trainer.best_model = _clone_state(net)
        if checkpoint is not None and distributed.rank == 0:
            save_checkpoint(*checkpoint, trainer.to_checkpoint())
        trainer.report_step(len(history))
    net.load_state_dict(trainer.best_model, strict=False)
    return history


class _Trainer:
    """A network with its optimiser, its schedule and the epochs so far."""

    def __init__(
        self,
        net: FineTuneNetwork,
        training: ImageDataset | ActivationDataset,
        config: TrainConfig,
        distributed: Distributed,
        resume_from: Checkpoint | None,
        report: ProgressCallback,
    ) -> None:
        self.net, self.training, self.config = net, training, config
        self.distributed, self.report = distributed, report
        self.history: list[Epoch] = []
        self.best_model = _clone_state(net)
        groups = net.param_groups(config.learning_rate, config.layer_decay, WEIGHT_DECAY)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.runner = distributed.wrap_ddp(net)
        if resume_from is not None:
            net.load_state_dict(resume_from.model, strict=False)
            resume_from.restore_optimizer(self.optimizer)
            self.history += [Epoch(**epoch) for epoch in resume_from.history]
            self.best_model = {
                name: tensor.to(distributed.device)
                for name, tensor in resume_from.best_model.items()
            }
        self.steps_per_epoch = len(self._make_batches(0))
        self.n_steps = config.epochs * self.steps_per_epoch
        self.step = len(self.history) * self.steps_per_epoch
        first = self.step
        self.schedule = LambdaLR(
            self.optimizer,
            lambda step: compute_lr_scale(first + step, self.n_steps, self.steps_per_epoch),
        )
        n_classes = net.classifier.out.out_features
        self.mixup = v2.MixUp(alpha=config.mixup, num_classes=n_classes) if config.mixup else None
        self.class_weights = _compute_class_weights(training.y, n_classes, config.class_weight)
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(distributed.device)

    def train_epoch(self) -> float:
        """Train one epoch; its mean loss."""
        number, device = len(self.history), self.distributed.device
        # Dropout in an epoch is the same whether or not training was stopped before it.
        torch.manual_seed(_derive_seed(self.config.seed, number, self.distributed.rank))
        self.net.train()
        losses = []
        for k, (x, y) in enumerate(self._make_batches(number)):
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            x, target = self._mix(x, y)
            with self.distributed.autocast():
                loss = nn.functional.cross_entropy(self.runner(x), target, self.class_weights)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise self._make_diverged_error(
                    f"the loss is {losses[-1]} in epoch {number + 1}, batch {k + 1}"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            self.report_step(number + 1)
        return float(np.mean(losses))

    def validate(self, validation: ImageDataset | ActivationDataset) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on the validation part."""
        scores = run_inference(self.net, validation, self.config.batch_size, self.distributed)
        truth = torch.from_numpy(np.asarray(validation.y))
        loss = float(nn.functional.cross_entropy(torch.from_numpy(scores), truth))
        if not math.isfinite(loss):
            raise self._make_diverged_error(
                f"the validation loss is {loss} after epoch {len(self.history) + 1}"
            )
        return loss, float((scores.argmax(axis=1) == validation.y).mean())

    def to_checkpoint(self) -> Checkpoint:
        """The state of the training after its last epoch."""
        return Checkpoint(
            model=self.net.trainable_state(),
            best_model=self.best_model,
            optimizer=self.optimizer.state_dict()["state"],
            history=[epoch.to_dict() for epoch in self.history],
        )

    def report_step(self, number: int) -> None:
        """Report the last step, of the epoch of that number."""
        stage = f"epoch {number} of {self.config.epochs}"
        self.report(TrainProgress(stage, self.step, self.n_steps, self.history))

    def _make_batches(self, epoch: int) -> Any:
        """The batches of one epoch, this process's share."""
        rank, world_size = self.distributed.rank, self.distributed.world_size
        sampler = EpochSampler(len(self.training), epoch, self.config.seed, rank, world_size)
        batch_size = max(1, self.config.batch_size // world_size)
        return make_dataloader(self.training, batch_size, self.distributed.device, sampler)

    def _mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A batch after mixup, if there is any, with the targets of the loss."""
        if self.mixup is None:
            return x, y
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_derive_seed(self.config.seed, self.step))
            # It takes floats of four axes alone, and mixes any two rows alike.
            rows, target = self.mixup(x.float().reshape(len(x), 1, 1, -1), y)
        return rows.view(x.shape), target

    def _make_diverged_error(self, what: str) -> DivergedError:
        rate = self.config.learning_rate
        return DivergedError(
            f"{what}: training has gone astray. Lower --learning-rate (it is {rate:g})"
        )


def compute_lr_scale(step: int, n_steps: int, steps_per_epoch: int) -> float:
    """The learning rate as a share of the highest: a linear warm-up, then a cosine to 0.

    Parameters
    ----------
    step : int
        From 0.
    n_steps, steps_per_epoch : int
        Of the whole training, and of one epoch.
    """
    warmup = max(1, min(steps_per_epoch, round(WARMUP_SHARE * n_steps)))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))


class EpochSampler(Sampler[int]):
    """The items of one epoch in random order, or this process's share of them.

    Parameters
    ----------
    n : int
    epoch, seed : int
    rank, world : int
        Of several processes, each takes every world-th, the same number all.
    """

    def __init__(self, n: int, epoch: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        order = np.random.default_rng((seed, epoch)).permutation(n)
        share = order[rank::world_size][: n // world_size] if world_size > 1 else order
        self.indices = (share + epoch * n).tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def make_dataloader(
    dataset: ImageDataset | ActivationDataset,
    batch_size: int,
    device: str,
    sampler: EpochSampler | None = None,
) -> "DataLoader[tuple[Tensor, int]]":
    """Batches of examples, in order if no other order is given.

    Worker processes help where a GPU waits, or where images are decoded anew each time.
    """
    busy = isinstance(dataset, ImageDataset) and not dataset.images.is_in_memory
    workers = min(8, cpu_count()) if busy or device != "cpu" else 0
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        pin_memory=device != "cpu",
        # What is left over would make a batch whose step counts as much as a whole one's.
        drop_last=sampler is not None and len(sampler) > 2 * batch_size,
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
    """Run a network on a dataset, in order.

    Returns
    -------
    float32 array of shape (n, K), or (n, D)
        Decision values; with `embeddings` what the classifier is given instead.
    """
    net.eval()
    found: list[np.ndarray] = []
    with torch.inference_mode(), distributed.autocast():
        for x, _ in make_dataloader(dataset, batch_size, distributed.device):
            x = x.to(distributed.device, non_blocking=True)
            found.append((net.embed(x) if embeddings else net(x)).float().cpu().numpy())
            report(TrainProgress("frozen pass", sum(map(len, found)), len(dataset)))
    return np.concatenate(found)


def _compute_class_weights(y: np.ndarray, n_classes: int, option: str | None) -> Tensor | None:
    if option is None:
        return None
    counts = np.bincount(y, minlength=n_classes)
    return torch.from_numpy(np.asarray(len(y) / (n_classes * counts), np.float32))


def _clone_state(net: FineTuneNetwork) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.trainable_state().items()}


def _should_stop(history: list[Epoch], config: TrainConfig, deadline: float | None) -> bool:
    """Whether all epochs are done, the loss no longer falls, or the time is up."""
    if not history:
        return False
    stalled = len(history) - 1 - int(np.argmin([epoch.validation_loss for epoch in history]))
    longest = max(epoch.seconds for epoch in history)
    is_late = deadline is not None and time.monotonic() + longest > deadline
    return is_late or len(history) >= config.epochs or stalled >= config.patience


@contextmanager
def seed_torch(seed: int) -> Iterator[None]:
    """Draw random weights from a seed, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _derive_seed(*numbers: int) -> int:
    return hash(numbers) & 0x7FFFFFFF
