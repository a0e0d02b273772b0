"""`TrainConfig`: how a network is trained. Its defaults and checks need no torch."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from classify.errors import CallError
from featurize.text import did_you_mean, list_choices

AUGMENTATIONS = ("flips", "crops", "none")
BATCH_NORM_MODES = ("frozen", "trained")
SCRATCH_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "layer_decay": 1.0,
    "block_decay": 1.0,
    "batch_norm": "trained",
}
"""Random weights need a higher learning rate, the same for all stages, and their own statistics."""
WARMUP_SHARE = 0.1  # of all steps, though at most one epoch
LORA_DEFAULTS: dict[str, Any] = {"learning_rate": 1e-3, "layer_decay": 1.0, "block_decay": 1.0}
"""Adapters begin at zero beside weights that stay: nothing has to be spared by a lower rate."""


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained.

    Attributes
    ----------
    epochs : int
        Maximum number of epochs.
    batch_size : int
        Images per step, over all processes together.
    learning_rate : float
        The highest learning rate of AdamW (I. Loshchilov and F. Hutter, 2019, "Decoupled weight
        decay regularization", ICLR). It is that of the classifier and of the deepest stage.
    augment : {"flips", "crops", "none"}
        ``flips``: random crops, mirrored half the time. ``crops``: random crops alone, for
        images with a left and a right. ``none``: the central crop.
    mixup : float
        The alpha of mixup (H. Zhang et al., 2018, "mixup: beyond empirical risk minimization",
        ICLR). 0 means no mixup.
    patience : int
        Epochs without a lower validation loss before training stops.
    batch_norm : {"frozen", "trained"}
        ``frozen``: images are normalised by the pretrained statistics. ``trained``: the
        statistics are updated.
    class_weight : {"balanced"}, optional
        ``balanced``: every class has the same weight in the loss, whatever its size.
    seed : int
        Of random weights, of the order of images, and of their augmentation.
    layer_decay : float
        Learning rate of a stage as a share of the next stage's.
    block_decay : float
        Learning rate of a block as a share of the next block's, for transformers that are a row of
        equal blocks. The default is that of masked autoencoders (K. He et al., 2022, "Masked
        autoencoders are scalable vision learners", CVPR); BEiT has 0.65 to 0.75.
    lora : int, optional
        Rank of adapters that are trained in place of weights. By default the weights are trained.

    Raises
    ------
    CallError
        If an option has an unknown value, or a number is out of range.
    """

    epochs: int = 15
    batch_size: int = 32
    learning_rate: float = 3e-4
    augment: str = "flips"
    mixup: float = 0.0
    patience: int = 5
    batch_norm: str = "frozen"
    class_weight: str | None = None
    seed: int = 0
    layer_decay: float = 0.7
    block_decay: float = 0.75
    lora: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise CallError(f"{name.replace('_', ' ')} is 1 or more, not {getattr(self, name)}")
        if self.lora is not None and self.lora < 1:
            raise CallError(f"the rank of --lora is 1 or more, not {self.lora}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise CallError(f"the learning rate is above 0, not {self.learning_rate}")
        if not (self.mixup >= 0 and math.isfinite(self.mixup)):
            raise CallError(f"mixup is 0 or above, not {self.mixup}")
        if self.augment not in AUGMENTATIONS:
            raise CallError(f"--augment is one of {list_choices(self.augment, AUGMENTATIONS)}")
        if self.batch_norm not in BATCH_NORM_MODES:
            hint = did_you_mean(self.batch_norm, BATCH_NORM_MODES)
            raise CallError(f"batch norm is frozen or trained, not {self.batch_norm!r}{hint}")
        if self.class_weight not in (None, "balanced"):
            raise CallError(f"the class weight is balanced or nothing, not {self.class_weight!r}")

    def check_processes(self, world_size: int) -> None:
        """Refuse what several processes cannot do together.

        Parameters
        ----------
        world_size : int
            Number of processes that train together.

        Raises
        ------
        CallError
            If a batch cannot be shared by them, or batch norms are trained.
        """
        if world_size > self.batch_size:
            raise CallError(
                f"a batch of {self.batch_size} images cannot be shared by {world_size} processes: "
                "raise --batch-size"
            )
        if world_size > 1 and self.batch_norm == "trained":
            raise CallError(
                "batch norms are trained by one process alone: each would see its share of a "
                "batch. Leave --batch-norm at frozen, or start one process"
            )

    @classmethod
    def from_options(cls, options: Any, *, from_scratch: bool = False) -> "TrainConfig":
        """Collect the options of an object that has them as attributes.

        Parameters
        ----------
        options : object
            An attribute that is missing or None takes its default. With ``lora``, `LORA_DEFAULTS`
            replace the defaults.
        from_scratch : bool
            Whether training starts from random weights. Then `SCRATCH_DEFAULTS` replace them.
            False by default.

        Returns
        -------
        TrainConfig

        Raises
        ------
        CallError
            If an option has an unknown value, a number is out of range, or adapters are asked for
            beside random weights.
        """
        given = {field.name: getattr(options, field.name, None) for field in fields(cls)}
        with_adapters = given["lora"] is not None
        if with_adapters and from_scratch:
            raise CallError(
                "--lora adapts pretrained weights, and --weights none are random: leave one out"
            )
        defaults = SCRATCH_DEFAULTS if from_scratch else LORA_DEFAULTS if with_adapters else {}
        return cls(**defaults | {name: value for name, value in given.items() if value is not None})


def compute_lr_scale(step: int, n_steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate as a share of the highest: a linear warm-up, then a cosine to 0.

    Parameters
    ----------
    step : int
        From 0.
    n_steps : int
        Number of steps in the whole training.
    steps_per_epoch : int
        Number of steps in one epoch.

    Returns
    -------
    float
        From 0 to 1.
    """
    warmup = max(1, min(steps_per_epoch, round(WARMUP_SHARE * n_steps)))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch.

    Attributes
    ----------
    number : int
        From 1.
    loss, validation_loss : float
        Mean loss: of classes, cross-entropy in nats; see `classify.finetuning.objectives`.
    validation : float, or None
        On the validation part: accuracy, or the metric that heads for other kinds of labels are
        ranked by. None where that is undefined.
    seconds : float
        Time of training and validation.
    """

    number: int
    loss: float
    validation_loss: float
    validation: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)
