"""Train a network: warm-up, cosine decay, early stopping, and a checkpoint after every epoch."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from classify.errors import DivergedError
from classify.finetuning.checkpoint import Checkpoint, save_checkpoint
from classify.finetuning.config import Epoch, TrainConfig, compute_lr_scale
from classify.finetuning.datasets.activations import ActivationDataset
from classify.finetuning.datasets.images import ImageDataset
from classify.finetuning.datasets.item_labels import ItemLabel
from classify.finetuning.datasets.loader import EpochSampler, make_dataloader
from classify.finetuning.distributed import Distributed, derive_seed
from classify.finetuning.network import FineTuneNetwork
from classify.finetuning.objectives.objective import Objective
from classify.time_limit import EpochBudget
from featurize.engines.torch_settings import precision_context
from featurize.progress import ignore

WEIGHT_DECAY = 0.02
MAX_GRAD_NORM = 1.0
MIN_TIMED_STEPS = 3  # after which the length of an epoch is told


@dataclass(frozen=True)
class TrainProgress:
    """A `featurize.progress.Progress` with the epochs so far.

    Attributes
    ----------
    stage : str
        The current stage: ``reading images``, ``frozen pass`` or ``epoch 3 of 15``.
    done, total : int
        Images of the stage; while training, steps of all epochs together.
    history : list of Epoch
        The finished epochs.
    metric : str
        What `Epoch.validation` is; empty for the accuracy.
    """

    stage: str
    done: int
    total: int
    history: Sequence[Epoch] = ()
    metric: str = ""

    @property
    def note(self) -> str:
        """The result of the last epoch: ``validation 0.912, loss 0.310``."""
        if not self.history:
            return ""
        last = self.history[-1]
        words = ["validation", *([self.metric] if self.metric else [])]
        words.append("undefined" if last.validation is None else f"{last.validation:.3f}")
        return f"{' '.join(words)}, loss {last.validation_loss:.3f}"


ProgressCallback = Callable[[TrainProgress], None]


def train_network(
    net: FineTuneNetwork,
    training: ImageDataset | ActivationDataset,
    validation: ImageDataset | ActivationDataset,
    objective: Objective,
    config: TrainConfig,
    *,
    distributed: Distributed,
    checkpoint: tuple[Path, str] | None = None,
    resume_from: Checkpoint | None = None,
    budget: EpochBudget | None = None,
    report: ProgressCallback = ignore,
) -> list[Epoch]:
    """Train a network and restore its weights of the epoch with the lowest validation loss.

    The optimiser is AdamW, with a linear warm-up, a cosine decay and clipped gradients.

    Parameters
    ----------
    net : FineTuneNetwork
        On the device of `distributed`. It is trained in place.
    training, validation : ImageDataset or ActivationDataset
        Images to train on, and images for early stopping.
    objective : Objective
        The loss, and the metric that users are told.
    config : TrainConfig
        The options of the training.
    distributed : Distributed
        The processes that train together.
    checkpoint : (Path, str), optional
        The path of a checkpoint, written after every epoch, and its key: a digest of what is
        trained, and how.
    resume_from : Checkpoint, optional
        The state to continue from. The result is that of an uninterrupted training.
    budget : EpochBudget, optional
        No epoch begins that does not fit. One that turns out not to fit is left: its steps count
        for nothing.
    report : callable
        Called with a `TrainProgress` after every step.

    Returns
    -------
    list of Epoch
        All epochs, including those of `resume_from`.

    Raises
    ------
    DivergedError
        If the loss is not finite.
    OutputError
        If the checkpoint cannot be written.
    RunInterruptedError
        If not even one epoch fits.
    """
    trainer = _Trainer(net, training, objective, config, distributed, resume_from, report, budget)
    history = trainer.history
    while not distributed.broadcast(_should_stop(history, config, budget)):
        started = time.monotonic()
        loss = trainer.train_epoch()
        if loss is None:
            break
        validation_loss, metric = trainer.validate(validation)
        seconds = time.monotonic() - started
        history.append(Epoch(len(history) + 1, loss, validation_loss, metric, seconds))
        if min(history, key=lambda epoch: epoch.validation_loss) is history[-1]:
            trainer.best_model = _clone_state(net)
        if checkpoint is not None and distributed.rank == 0:
            save_checkpoint(*checkpoint, trainer.to_checkpoint())
        if budget is not None:
            budget.longest_epoch = max(budget.longest_epoch, time.monotonic() - started)
        trainer.report_step(len(history))
    net.load_trainable_state(trainer.best_model)
    return history


class _Trainer:
    """A network with its optimiser, its learning-rate schedule and the epochs so far."""

    def __init__(
        self,
        net: FineTuneNetwork,
        training: ImageDataset | ActivationDataset,
        objective: Objective,
        config: TrainConfig,
        distributed: Distributed,
        resume_from: Checkpoint | None,
        report: ProgressCallback,
        budget: EpochBudget | None,
    ) -> None:
        self.budget = budget
        self.net, self.training, self.config = net, training, config
        self.objective = objective
        self.distributed, self.report = distributed, report
        self.history: list[Epoch] = []
        self.best_model = _clone_state(net)
        groups = net.param_groups(
            config.learning_rate, config.layer_decay, config.block_decay, WEIGHT_DECAY
        )
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.runner = distributed.wrap_ddp(net)
        if resume_from is not None:
            net.load_trainable_state(resume_from.model)
            resume_from.restore_optimizer(self.optimizer, self._order_parameters())
            self.history += [Epoch(**epoch) for epoch in resume_from.history]
            self.best_model = {
                name: tensor.to(distributed.device)
                for name, tensor in resume_from.best_model.items()
            }
        rank, world_size = distributed.rank, distributed.world_size
        self._sampler = EpochSampler(len(training), config.seed, rank, world_size)
        batch_size = max(1, config.batch_size // world_size)  # this process's share
        self._batches = make_dataloader(training, batch_size, distributed.device, self._sampler)
        self._validation_batches: DataLoader[tuple[Tensor, ItemLabel]] | None = None
        self.steps_per_epoch = len(self._batches)
        self.n_steps = config.epochs * self.steps_per_epoch
        self.step = len(self.history) * self.steps_per_epoch
        first_step = self.step
        self.schedule = LambdaLR(
            self.optimizer,
            lambda step: compute_lr_scale(first_step + step, self.n_steps, self.steps_per_epoch),
        )
        self.mixup = objective.make_mixup(config.mixup)
        self.compute_loss = objective.make_loss(training.y, config, distributed.device)

    def train_epoch(self) -> float | None:
        """Train one epoch and return its mean loss; None if it does not fit."""
        epoch, device = len(self.history), self.distributed.device
        # Seed each epoch, so that a resumed training has the same dropout.
        torch.manual_seed(derive_seed(self.config.seed, epoch, self.distributed.rank))
        self.net.train()
        losses: list[Tensor] = []
        n_checked = 0
        first_ended = math.inf  # the first step takes longer than the others
        self._sampler.epoch = epoch
        for k, (x, y) in enumerate(self._batches):
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            x, target = self._mix(x, y)
            with self.distributed.autocast():
                loss = self.compute_loss(self.runner(x), target)
            losses.append(loss.detach())
            if len(losses) - n_checked == self._steps_per_check:
                self._check_losses(losses, n_checked)
                n_checked = len(losses)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            self.report_step(epoch + 1)
            first_ended = min(first_ended, time.monotonic())
            if self._is_over_budget(k + 1, (time.monotonic() - first_ended) / max(k, 1)):
                return None
        self._check_losses(losses, n_checked)
        return self.distributed.average(float(np.mean(torch.stack(losses).double().cpu().numpy())))

    @property
    def _steps_per_check(self) -> int:
        """A GPU, and other processes, would be waited for at every look at a loss."""
        is_alone = self.distributed.world_size == 1 and self.distributed.device == "cpu"
        return 1 if is_alone else 20

    def _check_losses(self, losses: list[Tensor], first: int) -> None:
        """Raise in all processes if a loss from number `first` on is not finite in any of them."""
        values = [float(loss) for loss in losses[first:]]
        wrong = [number for number, value in enumerate(values) if not math.isfinite(value)]
        found = self.distributed.find_first(wrong[0] if wrong else None)
        if found is None:
            return
        # Where this process has a number, another one has not.
        loss = math.nan if math.isfinite(values[found]) else values[found]
        raise self._make_diverged_error(
            f"the loss is {loss} in epoch {len(self.history) + 1}, batch {first + found + 1}"
        )

    def _is_over_budget(self, n_done: int, seconds_per_step: float) -> bool:
        """Tell whether the epoch does not fit; raise if it is the first one."""
        if self.budget is None or n_done < MIN_TIMED_STEPS:
            return False
        n_steps = self.steps_per_epoch - n_done
        is_over = not self.budget.allows_steps(n_steps, seconds_per_step)
        if not self.distributed.broadcast(is_over):
            return False
        self.budget.is_spent = True
        if not self.history:
            raise self.budget.make_error(n_steps, seconds_per_step)
        return True

    def validate(self, validation: ImageDataset | ActivationDataset) -> tuple[float, float | None]:
        """Return the mean loss and the metric on the validation part."""
        if self._validation_batches is None:
            self._validation_batches = make_dataloader(
                validation, self.config.batch_size, self.distributed.device
            )
        outputs = run_inference(
            self.net,
            validation,
            self.config.batch_size,
            self.distributed,
            batches=self._validation_batches,
        )
        loss, metric = self.objective.measure(outputs, validation.y)
        if not math.isfinite(loss):
            raise self._make_diverged_error(
                f"the validation loss is {loss} after epoch {len(self.history) + 1}"
            )
        return loss, metric

    def to_checkpoint(self) -> Checkpoint:
        """Return the state of the training after its last epoch."""
        return Checkpoint(
            model=self.net.trainable_state(),
            best_model=self.best_model,
            optimizer=self._reorder_state(self.optimizer.state_dict()["state"]),
            history=[epoch.to_dict() for epoch in self.history],
        )

    def _order_parameters(self) -> list[int]:
        """Return the place of each parameter of the optimiser among those of the network."""
        places = {id(p): place for place, p in enumerate(self.net.trainable_parameters().values())}
        groups = self.optimizer.param_groups
        return [places[id(parameter)] for group in groups for parameter in group["params"]]

    def _reorder_state(self, state: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        """Return the optimiser's state by the place of its parameters among the network's."""
        places = self._order_parameters()
        return {places[number]: entry for number, entry in state.items()}

    def report_step(self, number: int) -> None:
        """Report the last step, which belongs to epoch `number` (from 1)."""
        stage = f"epoch {number} of {self.config.epochs}"
        done, metric = (self.step, self.n_steps, self.history), self.objective.title
        self.report(TrainProgress(stage, *done, metric))

    def _mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs and the targets of the loss, after mixup if there is any."""
        if self.mixup is None:
            return x, y
        with torch.random.fork_rng(devices=[]):
            # Not that of the GPUs, from which dropout is drawn.
            torch.default_generator.manual_seed(derive_seed(self.config.seed, self.step))
            # MixUp accepts only float tensors with four axes. It mixes rows of any shape alike.
            mixed, target = self.mixup(x.float().reshape(len(x), 1, 1, -1), y)
        return mixed.view(x.shape), target

    def _make_diverged_error(self, reason: str) -> DivergedError:
        rate = self.config.learning_rate
        return DivergedError(
            f"{reason}: training has gone astray. Lower --learning-rate (it is {rate:g})"
        )


def run_inference(
    net: FineTuneNetwork,
    dataset: ImageDataset | ActivationDataset,
    batch_size: int,
    distributed: Distributed,
    *,
    embeddings: bool = False,
    batches: "DataLoader[tuple[Tensor, ItemLabel]] | None" = None,
    report: ProgressCallback = ignore,
) -> np.ndarray:
    """Run a network on a dataset, in order.

    Parameters
    ----------
    net : FineTuneNetwork
        On the device of `distributed`. It is left in evaluation mode.
    dataset : ImageDataset or ActivationDataset
        n images or activations.
    batch_size : int
        Images per batch.
    distributed : Distributed
        Gives the device.
    embeddings : bool
        Whether to return embeddings. False by default.
    batches : DataLoader, optional
        The loader of the dataset, where there is one already.
    report : callable
        Called with a `TrainProgress` after every batch.

    Returns
    -------
    float32 array of shape (n, K), or (n, D)
        Decision values; with `embeddings`, the inputs of the classifier.
    """
    net.eval()
    outputs: list[np.ndarray] = []
    # In float32 on any device, as `predict` does.
    with torch.inference_mode(), precision_context(distributed.device, "float32"):
        for x, _ in batches or make_dataloader(dataset, batch_size, distributed.device):
            x = x.to(distributed.device, non_blocking=True)
            outputs.append((net.embed(x) if embeddings else net(x)).float().cpu().numpy())
            report(TrainProgress("frozen pass", sum(map(len, outputs)), len(dataset)))
    return np.concatenate(outputs)


def _clone_state(net: FineTuneNetwork) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.trainable_state().items()}


def _should_stop(history: list[Epoch], config: TrainConfig, budget: EpochBudget | None) -> bool:
    """Tell whether all epochs are done, the loss no longer falls, or the time is up."""
    if not history:
        return False
    n_stalled = len(history) - 1 - int(np.argmin([epoch.validation_loss for epoch in history]))
    if len(history) >= config.epochs or n_stalled >= config.patience:
        return True
    if budget is None:
        return False
    budget.longest_epoch = max(budget.longest_epoch, *(epoch.seconds for epoch in history))
    budget.is_spent = not budget.allows_epoch()
    return budget.is_spent
