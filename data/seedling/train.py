"""Train the embedded backbone from drawn pictures alone. No real image enters.

    python data/seedling/train.py --seed 0 --steps 1800 -o featurize/seedling/seedling.safetensors

Two objectives at once: predict what a wide dictionary of drawn patches says of a view (see
``teacher.py``), and know two views of one picture among those of all others (NT-Xent).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from pictures import draw
from planes import SIDE, chance, uniform
from safetensors.torch import load_file, save
from teacher import Teacher
from torch import Generator, Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from featurize.seedling.network import PREPROCESS, Seedling

VERSION = "1"
SIZE = PREPROCESS["crop"]
TAUGHT = {"stage2": 0.25, "stage3": 0.5, "stage4": 1.0}
"""Stages that predict the teacher, with the weight of their error."""


def resize_rows(centre: Tensor, width: Tensor, blur: Tensor) -> Tensor:
    """Make matrices (N, SIZE, SIDE) that cut a span and resize it with a triangle filter.

    The filter is that of an antialiased bilinear resize, widened by ``blur``; one matrix for rows
    and one for columns make a crop, a resize and a blur in two products.
    """
    steps = (torch.arange(SIZE) + 0.5) / SIZE
    middle = (centre[:, None] + (steps - 0.5) * width[:, None]) * SIDE
    support = (width * SIDE / SIZE).clamp_min(1.0) * blur
    gap = (torch.arange(SIDE) + 0.5 - middle[:, :, None]).abs()
    rows = (1 - gap / support[:, None, None]).clamp_min(0)
    return rows / rows.sum(2, keepdim=True).clamp_min(1e-6)


def look(pictures: Tensor, g: Generator) -> Tensor:
    """Take one random view of each picture: crop, mirror, blur, light and colour.

    Parameters
    ----------
    pictures : Tensor
        (N, 3, SIDE, SIDE) uint8.
    g : Generator
        Source of the random numbers.

    Returns
    -------
    Tensor
        (N, 3, SIZE, SIZE) float32 in 0..1.
    """
    n = len(pictures)
    area, ratio = uniform(g, 0.25, 1, n), torch.exp2(uniform(g, -0.4, 0.4, n))
    wide, high = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    blur = 1 + chance(g, 0.25, n) * uniform(g, 0, 1.5, n)
    rows = resize_rows(high / 2 + torch.rand(n, generator=g) * (1 - high), high, blur)
    columns = resize_rows(wide / 2 + torch.rand(n, generator=g) * (1 - wide), wide, blur)
    mirrored = chance(g, 0.5, n)[:, None, None] > 0
    columns = torch.where(mirrored, columns.flip(1), columns)
    x = rows[:, None] @ (pictures.float() / 255) @ columns.transpose(1, 2)[:, None]
    # A 3x3 matrix near a multiple of one: saturation, hue and tint in a single product.
    grey = torch.full((3, 3), 1 / 3)
    saturation = torch.exp2(uniform(g, -1.2, 0.6, n, 1, 1)) * chance(g, 0.85, n, 1, 1)
    mix = saturation * torch.eye(3) + (1 - saturation) * grey
    mix = mix + 0.08 * torch.randn(n, 3, 3, generator=g)
    contrast = torch.exp2(uniform(g, -0.6, 0.5, n, 1, 1, 1))
    x = torch.einsum("nij,njyx->niyx", mix, x - 0.5) * contrast
    x = x + 0.5 + uniform(g, -0.15, 0.15, n, 1, 1, 1)
    x = x + 0.03 * chance(g, 0.3, n, 1, 1, 1) * torch.randn(x.shape, generator=g)
    return x.clamp(0, 1)


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


def pictures_for_ever(batch: int, fresh: int, size: int, g: Generator) -> Iterator[Tensor]:
    """Yield batches from a store in which ``fresh`` pictures are replaced before each batch.

    Drawing costs more than looking: each picture serves ``batch / fresh`` times on average.
    """
    store = torch.cat([draw(128, g) for _ in range(size // 128)])
    while True:
        for start in range(0, len(store) - fresh + 1, fresh):
            store[start : start + fresh] = draw(fresh, g)
            yield store[torch.randperm(len(store), generator=g)[:batch]]


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


def write(network: Seedling, path: Path, notes: dict[str, str]) -> None:
    """Write the weights as float16, under a temporary name first: no reader sees half a file."""
    tensors = {name: value.half() if value.is_floating_point() else value
               for name, value in network.state_dict().items()}  # fmt: skip
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(save({k: v.contiguous() for k, v in tensors.items()}, notes))
    os.replace(draft, path)


def train(options: argparse.Namespace) -> None:
    """Run the recipe and write the weights."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    g = torch.Generator().manual_seed(options.seed)
    began = time.perf_counter()
    sample = torch.cat([look(draw(256, g), g) for _ in range(16)])
    teacher = Teacher(sample, g, dim=options.dim)
    network = Seedling()
    if options.start:
        network.load_state_dict({k: v.float() for k, v in load_file(options.start).items()})
        g.manual_seed(options.seed + 1)  # The same teacher, but pictures not seen before.
    pupil = Pupil(network, options.dim).to(memory_format=torch.channels_last).train()
    decayed = [p for p in pupil.parameters() if p.ndim > 1]
    others = [p for p in pupil.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    )
    mean = torch.tensor(PREPROCESS["mean"])[:, None, None]
    std = torch.tensor(PREPROCESS["std"])[:, None, None]
    source = pictures_for_ever(options.batch, options.fresh, options.store, g)
    apart = ("output", "seed", "steps", "start", "stop")
    settings = {k: v for k, v in vars(options).items() if k not in apart}
    notes = {"name": "seedling", "version": VERSION, "seed": str(options.seed),
             "steps": str(options.steps), "recipe": "data/seedling/train.py",
             "start": options.start.name if options.start else "random",
             "settings": json.dumps(settings, sort_keys=True)}  # fmt: skip
    looped = said = time.perf_counter()
    until = min(options.steps, options.stop or options.steps)
    for step in range(until):
        done = (step + 0.5) / options.steps
        rate = options.rate * min(1.0, done / options.warm) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimiser.param_groups:
            group["lr"] = rate
        pictures = next(source)
        views = torch.cat([look(pictures, g), look(pictures, g)])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            truth = teacher(views).float()
        x = ((views - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            answers, points = pupil(x)
        errors = {s: ((a.float() - truth) ** 2 * teacher.weight).mean() for s, a in answers.items()}
        taught = sum((TAUGHT[s] * e for s, e in errors.items()), torch.zeros(()))
        paired = nt_xent(*points.float().chunk(2))
        optimiser.zero_grad(set_to_none=True)
        (taught + options.contrast * paired).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if (step + 1) % options.keep == 0 or step + 1 == until:
            write(pupil.network, options.output, {**notes, "done": str(step + 1)})
        now = time.perf_counter()
        if now - said > 10 or step + 1 == until:
            said, speed = now, (step + 1) / (now - looped)
            unexplained = " ".join(f"{s} {e.item():.3f}" for s, e in errors.items())
            print(f"step {step + 1}/{until}  teacher error {unexplained}  pairs "
                  f"{paired.item():.3f}  {speed * len(views):.0f} images/s  "
                  f"{(until - step - 1) / speed:.0f} s left",
                  file=sys.stderr, flush=True)  # fmt: skip
    print(f"{options.output}: {time.perf_counter() - began:.0f} s in all", file=sys.stderr)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=64, help="pictures a step, two views each")
    parser.add_argument("--fresh", type=int, default=16, help="pictures drawn anew each step")
    parser.add_argument("--store", type=int, default=4096, help="pictures held")
    parser.add_argument("--keep", type=int, default=200, help="write weights every so many steps")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--warm", type=float, default=0.05, help="share of steps to reach it in")
    parser.add_argument("--stop", type=int, help="end after so many of the steps")
    parser.add_argument("--start", type=Path, help="go on from these weights, with new pictures")
    parser.add_argument("--contrast", type=float, default=0.1, help="weight of the pair loss")
    parser.add_argument("--dim", type=int, default=384, help="length of the teacher's answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
