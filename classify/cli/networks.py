"""The verbs that load a network: `finetune`, `auto`, `zeroshot`.

As in `classify.cli.app`, their docstrings are their ``--help`` texts.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from classify.cli.options import (
    ClassWeight,
    Column,
    Columns,
    Kind,
    Labels,
    LabelsLevel,
    Order,
    Seed,
    Similarity,
    Size,
    TestSize,
)
from classify.finetuning.config import AUGMENTATIONS, TrainConfig
from classify.launcher import is_main_process, let_main_process_speak
from classify.time_limit import TimeLimit
from featurize.cli.completion import complete_choice, complete_word, list_stages
from featurize.cli.console import handle_errors, print_json, show_notices
from featurize.cli.options import Backbone, CacheFile, Debug, Device, Json, Preprocess
from featurize.cli.progress import ProgressDisplay
from featurize.progress import Progress
from featurize.system import signals
from featurize.text import format_duration, parse_duration


def _list_tuned_parts(ctx: typer.Context) -> list[str]:
    return ["all", *(word for word in list_stages(ctx) if word != "auto")]


Images = Annotated[str, typer.Argument(metavar="IMAGES", help="As for `featurize run`.")]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="M", help="Where to save network and classifier, one file."
    ),
]
Weights = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="As for `featurize run`, or none: random.")
]
MaxTime = Annotated[
    str | None,
    typer.Option(
        metavar="1h30m", help="How long all of it may take; no epoch begins that does not fit."
    ),
]
Epochs = Annotated[int, typer.Option(help="At most.")]
BatchSize = Annotated[int, typer.Option(help="Images a step.")]
LearningRate = Annotated[
    float | None, typer.Option(help="The highest; 3e-4, or 1e-3 from scratch.")
]
Augment = Annotated[
    str,
    typer.Option(
        metavar="flips|crops|none",
        autocompletion=complete_choice(*AUGMENTATIONS),
        help="Random crops and mirroring; crops alone, for what has a left and a right.",
    ),
]
GRACE_SECONDS = 1.0  # beyond a time limit, for what is about to end


class TrainingDisplay(ProgressDisplay):
    """A `ProgressDisplay` that also prints a line for each epoch in a log."""

    _n_epochs = 0

    def report(self, step: Progress) -> None:
        """Show how far a stage is, and the result of each finished epoch.

        Parameters
        ----------
        step : Progress
            While training, a `classify.TrainProgress`.
        """
        history: Any = getattr(step, "history", ())
        if len(history) > self._n_epochs:
            last = history[-1]
            n_epochs = step.stage.rpartition(" ")[2]
            self.say_milestone(
                f"epoch {last.number} of {n_epochs}: {step.note}, {format_duration(last.seconds)}"
            )
        self._n_epochs = len(history)
        super().report(step)

    def describe_end(self, step: Progress, seconds: float) -> str:
        """Describe the end of a stage; that of an epoch is described by its result."""
        return "" if step.stage.startswith("epoch ") else super().describe_end(step, seconds)


@contextmanager
def _show_training(max_time: str | None) -> Iterator[tuple[TrainingDisplay, TimeLimit]]:
    """Show training, and end the command as Ctrl-C does if it overruns its time limit.

    Work ends in time by itself where it reports how far it is. This is for what does not report:
    the import of a library, the training of one head.
    """
    limit = TimeLimit(parse_duration(max_time))
    deadline = limit.deadline if limit.is_set else None
    with TrainingDisplay("loading torch", deadline) as display:
        if deadline is None:
            yield display, limit
            return

        def stop() -> None:
            duration = format_duration(limit.seconds)
            display.say(f"the time limit of {duration} is up; give it a longer --max-time")
            os.kill(os.getpid(), signal.SIGTERM)

        timer = threading.Timer(max(0.0, limit.left) + GRACE_SECONDS, stop)
        timer.daemon = True
        timer.start()
        try:
            yield display, limit
        finally:
            timer.cancel()
            if limit.left < 0:
                signals.hurry_exit()


def finetune(
    images: Images,
    output: Output,
    labels: Labels = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    kind: Kind = None,
    columns: Columns = None,
    order: Order = None,
    backbone: Backbone = None,
    weights: Weights = None,
    preprocess: Preprocess = None,
    tune: Annotated[
        str,
        typer.Option(
            metavar="last|last-N|LAYER|all",
            autocompletion=complete_word(_list_tuned_parts),
            help="From this layer on; last is the deepest stage, last-4 four blocks or stages.",
        ),
    ] = "all",
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK", help="Train adapters of this rank in place of the weights; 8 is usual."
        ),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            metavar="linear|mlp",
            autocompletion=complete_choice("linear", "mlp"),
            help="The new classifier; linear if not given.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="C.h5",
            help="Its last layer gives the start; with PREVIOUS:none the frozen part is not run.",
        ),
    ] = None,
    init_head: Annotated[
        str | None,
        typer.Option(metavar="H|random", help="Start from this head, or a random one."),
    ] = None,
    epochs: Epochs = TrainConfig.epochs,
    batch_size: BatchSize = TrainConfig.batch_size,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="The highest; 3e-4, or 1e-3 from scratch or with --lora."),
    ] = None,
    patience: Annotated[
        int, typer.Option(help="Epochs without a lower validation loss before it stops.")
    ] = TrainConfig.patience,
    augment: Augment = TrainConfig.augment,
    mixup: Annotated[float, typer.Option(help="Alpha of mixup; 0 is none.")] = TrainConfig.mixup,
    batch_norm: Annotated[
        str | None,
        typer.Option(
            metavar="frozen|trained",
            autocompletion=complete_choice("frozen", "trained"),
            help="Frozen, except from random weights.",
        ),
    ] = None,
    class_weight: ClassWeight = None,
    device: Device = "auto",
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    max_time: MaxTime = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the network too, from a linear probe on; killed, it goes on when called again."""
    with handle_errors(debug, json), let_main_process_speak():
        with _show_training(max_time) as (display, limit):
            signals.import_uninterrupted("torchvision")
            from classify.finetuning.run import finetune as tune_backbone

            result = tune_backbone(
                images,
                output,
                labels,
                backbone=backbone,
                weights=weights,
                preprocess=preprocess,
                cache=cache,
                tune=tune,
                lora=lora,
                classifier=classifier,
                column=column,
                labels_level=labels_level,
                kind=kind,
                columns=columns,
                order=order,
                test_size=test_size,
                seed=seed,
                max_seconds=limit if limit.is_set else None,
                say=display.say,
                report=display.report,
                init_head=init_head,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                patience=patience,
                augment=augment,
                mixup=mixup,
                batch_norm=batch_norm,
                class_weight=class_weight,
                device=device,
            )
        if not is_main_process():
            return
        show_notices(result.notices)
        if json:
            print_json(result.to_dict())
        elif hasattr(result, "kind"):
            from classify.cli.tables.targets import show_target_finetune

            show_target_finetune(result, str(output))
        else:
            from classify.cli.tables.classes import show_finetune

            show_finetune(result, str(output))


def auto(
    images: Images,
    output: Output,
    labels: Labels = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    backbone: Backbone = None,
    weights: Weights = None,
    preprocess: Preprocess = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="C.h5", help="Where the features go; else M.h5.")
    ] = None,
    size: Size = None,
    similarity: Similarity = None,
    epochs: Epochs = TrainConfig.epochs,
    batch_size: BatchSize = TrainConfig.batch_size,
    learning_rate: LearningRate = None,
    augment: Augment = TrainConfig.augment,
    device: Device = "auto",
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    max_time: MaxTime = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Featurize, advise, and carry out what is advised; what else was tried stands beside it.

    With --max-time the strategies that were not advised are tried too, as far as the time goes; if
    it is too short for the advised one, the best probe is saved.
    """
    with handle_errors(debug, json):
        with _show_training(max_time) as (display, limit):
            from classify.strategy.auto import auto as run_auto

            result = run_auto(
                images,
                output,
                labels,
                backbone=backbone,
                weights=weights,
                preprocess=preprocess,
                cache=cache,
                size=size,
                similarity=similarity,
                column=column,
                labels_level=labels_level,
                test_size=test_size,
                seed=seed,
                max_seconds=limit if limit.is_set else None,
                device=device,
                say=display.say,
                report=display.report,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                augment=augment,
            )
        show_notices(result.notices)
        if json:
            print_json(result.to_dict())
        else:
            from classify.cli.tables.auto import show_auto

            show_auto(result, str(output))


def zeroshot(
    cache: CacheFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="H", help="Where to save the head.")
    ],
    text: Annotated[
        str,
        typer.Option(metavar="FILE|NAME", help="open_clip's checkpoint, or a tag that is here."),
    ],
    text_model: Annotated[
        str, typer.Option(metavar="NAME", help="Its architecture in open_clip: ViT-B-32.")
    ],
    labels: Labels = None,
    classes: Annotated[
        str | None, typer.Option(metavar="a,b,c", help="The class names, in place of labels.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Templates, one a line, with {} for the class name."),
    ] = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a head of class names alone, for the cache of a CLIP-like network.

    Labels name the classes, score the head and give its temperature; they change no prediction.
    """
    with handle_errors(debug, json):
        from classify.heads.io import check_head_file, save_head

        check_head_file(output)
        with ProgressDisplay("loading torch"):
            from classify.experiments.zero_shot import make_zero_shot_head
            from classify.training.zero_shot import PROMPTS, read_prompts

            fitted, record = make_zero_shot_head(
                cache,
                labels,
                text=text,
                text_model=text_model,
                classes=None if classes is None else [name.strip() for name in classes.split(",")],
                prompts=PROMPTS if prompts is None else read_prompts(prompts),
                column=column,
                labels_level=labels_level,
                test_size=test_size,
                seed=seed,
            )
        save_head(fitted, output)
        show_notices(fitted.notices)
        if json:
            print_json(record.to_dict())
        else:
            from classify.cli.tables.classes import show_fit

            show_fit(record, str(output))
