"""Train the embedded backbone from drawn pictures alone. No real image enters.

    python data/seedling/train.py --seed 0 --steps 1800 -o seedling.safetensors

Two objectives at once: predict what a wide dictionary of drawn patches says of a view (see
``teacher.py``), and know two views of one picture among those of all others (NT-Xent). The same
command after an interruption goes on where the last ``--keep`` left off. With ``--device cuda`` a
GPU draws and trains: by other random numbers, so it grows another network.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from pictures import FAMILIES, draw
from state import forget_state, keep_state, read_state, take_up, write
from teacher import Teacher
from torch import Generator, Tensor, nn
from views import look

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from featurize.backbones.seedling.network import PREPROCESS, Seedling

VERSION = "1"
TAUGHT = {"stage2": 0.25, "stage3": 0.5, "stage4": 1.0}
"""Stages that predict the teacher, with the weight of their error."""


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.2) -> Tensor:
    """Return the normalised-temperature cross entropy of two views (N, D) each.

    References
    ----------
    Chen, Kornblith, Norouzi & Hinton (2020), "A simple framework for contrastive learning of visual
    representations", ICML.
    """
    n = len(first)
    points = F.normalize(torch.cat([first, second]))
    near = points @ points.T / temperature
    near = near.masked_fill(torch.eye(2 * n, dtype=torch.bool), -1e4)
    return F.cross_entropy(near, torch.arange(2 * n).roll(n))


class Store:
    """Drawn pictures, a few of which are drawn anew before each batch.

    Drawing costs more than looking: each picture serves ``batch / fresh`` times on average.
    """

    def __init__(self, options: argparse.Namespace, g: Generator) -> None:
        self.options, self.g = options, g
        self.pictures = torch.cat([self._draw(128) for _ in range(options.store // 128)])

    def _draw(self, n: int) -> Tensor:
        return draw(n, self.g, self.options.families, self.options.mixing)

    def batch(self, step: int) -> Tensor:
        """Return the pictures of a step, (batch, 3, 64, 64) uint8."""
        fresh = self.options.fresh
        start = step % (len(self.pictures) // fresh) * fresh
        self.pictures[start : start + fresh] = self._draw(fresh)
        order = torch.randperm(len(self.pictures), generator=self.g)
        return self.pictures[order[: self.options.batch]]


class Pupil(nn.Module):
    """The network with what it needs in training only: linear readouts and a projector."""

    def __init__(self, network: Seedling, dim: int) -> None:
        super().__init__()
        self.network = network
        wide = {"stage2": 64, "stage3": 128, "stage4": network.dim}
        self.readouts = nn.ModuleDict({stage: nn.Linear(wide[stage], dim) for stage in TAUGHT})
        self.projector = nn.Sequential(
            nn.Linear(network.dim, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128)
        )

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the predicted answers by stage and the projected vectors."""
        answers = {}
        for stage in ("stem", "stage1", "stage2", "stage3", "stage4"):
            x = getattr(self.network, stage)(x)
            if stage in TAUGHT:
                answers[stage] = self.readouts[stage](x.mean((2, 3)))
        return answers, self.projector(x.mean((2, 3)))


def adamw(pupil: Pupil, *, fused: bool = False) -> torch.optim.AdamW:
    """Make the optimiser; weight decay for matrices and kernels only.

    A GPU needs it ``fused``: else it would be waited for at every parameter's number of steps.
    """
    decayed = [p for p in pupil.parameters() if p.ndim > 1]
    others = [p for p in pupil.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        fused=fused or None,
    )


def use_gpu() -> None:
    """Let tensors be made on the GPU from here on, and the same seed give the same weights there.

    TF32 would make the teacher another one than its dictionaries are.
    """
    # Read when cuBLAS starts: with more workspaces, products may add up in another order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_default_device("cuda")


def train(options: argparse.Namespace) -> None:
    """Run the recipe, or the rest of it, and write the weights."""
    is_gpu = options.device == "cuda"
    apart = ["output", "seed", "steps", "stop", "keep"]
    if not is_gpu:
        apart.append("device")  # files of the processor say what they always said
    settings = {k: v for k, v in vars(options).items() if k not in apart}
    notes = {"name": "seedling", "version": VERSION, "seed": str(options.seed),
             "steps": str(options.steps), "recipe": "data/seedling/train.py",
             "settings": json.dumps(settings, sort_keys=True)}  # fmt: skip
    first, state = read_state(options.output, notes)
    if is_gpu:
        use_gpu()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    g = torch.Generator(options.device).manual_seed(options.seed)
    began = time.perf_counter()
    drawn = (draw(256, g, options.families, options.mixing) for _ in range(options.sample // 256))
    views = torch.cat([look(pictures, g) for pictures in drawn])
    teacher = Teacher(views, g, dim=options.dim, part=1024 if is_gpu else 16)
    pupil = Pupil(Seedling(), options.dim).to(memory_format=torch.channels_last).train()
    optimiser = adamw(pupil, fused=is_gpu)
    store = Store(options, g)
    if state:
        take_up(state, pupil, optimiser, store)
    mean = torch.tensor(PREPROCESS.mean)[:, None, None]
    std = torch.tensor(PREPROCESS.std)[:, None, None]
    last = max(first, min(options.steps, options.stop or options.steps))
    looped = said = time.perf_counter()
    for step in range(first, last):
        done = (step + 0.5) / options.steps
        rate = options.rate * min(1.0, done / options.warm) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimiser.param_groups:
            group["lr"] = rate
        pictures = store.batch(step)
        views = torch.cat([look(pictures, g), look(pictures, g)])
        with (
            torch.no_grad(),
            torch.autocast(options.device, torch.bfloat16, enabled=options.bfloat16),
        ):
            truth = teacher(views).float()
        x = ((views - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bfloat16):
            answers, points = pupil(x)
        errors = {s: ((a.float() - truth) ** 2 * teacher.weight).mean() for s, a in answers.items()}
        taught = sum((TAUGHT[s] * errors[s] for s in options.taught), torch.zeros(()))
        paired = nt_xent(*points.float().chunk(2))
        optimiser.zero_grad(set_to_none=True)
        (taught + options.contrast * paired).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if (step + 1) % options.keep == 0:
            keep_state(options.output, pupil, optimiser, store, notes, step + 1)
        now = time.perf_counter()
        if now - said > 10 or step + 1 == last:
            unexplained = " ".join(f"{s} {e.item():.3f}" for s, e in errors.items())
            said = time.perf_counter()  # a GPU has been waited for by now
            speed = (step + 1 - first) / (said - looped)
            print(f"step {step + 1}/{last}  teacher error {unexplained}  pairs "
                  f"{paired.item():.3f}  {speed * len(views):.0f} images/s  "
                  f"{(last - step - 1) / speed:.0f} s left",
                  file=sys.stderr, flush=True)  # fmt: skip
    if last < options.steps:
        keep_state(options.output, pupil, optimiser, store, notes, last)
    else:
        write(pupil.network, options.output, {**notes, "done": str(last)})
        forget_state(options.output)
    print(f"{options.output}: {time.perf_counter() - began:.0f} s in all", file=sys.stderr)


def names_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Make a reader of comma-separated names that refuses others."""

    def read(text: str) -> tuple[str, ...]:
        found = tuple(filter(None, text.split(",")))
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}; there are {', '.join(known)}")
        return found

    return read


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1800, help="0: as they are before training")
    parser.add_argument("--batch", type=int, default=64, help="pictures a step, two views each")
    parser.add_argument("--fresh", type=int, default=16, help="pictures drawn anew each step")
    parser.add_argument("--store", type=int, default=4096, help="pictures held")
    parser.add_argument("--sample", type=int, default=4096, help="views the teacher is made of")
    parser.add_argument("--families", type=names_of(FAMILIES), default=FAMILIES,
                        help="pictures drawn, default " + ",".join(FAMILIES))  # fmt: skip
    parser.add_argument("--mixing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--warm", type=float, default=0.05, help="share of steps to reach it in")
    parser.add_argument("--taught", type=names_of(TAUGHT), default=tuple(TAUGHT),
                        help="stages that predict the teacher, default all")  # fmt: skip
    parser.add_argument("--contrast", type=float, default=0.1, help="weight of the pair loss")
    parser.add_argument("--dim", type=int, default=384, help="length of the teacher's answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--keep", type=int, default=200, help="write weights every so many steps")
    parser.add_argument("--stop", type=int, help="end after so many of the steps")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; leave the option out")
    train(options)


if __name__ == "__main__":
    main()
