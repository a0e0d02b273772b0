"""How many times the naive script a run can be on this processor, and how many times it is.

A script and a run decode the same images and multiply the same matrices. The processor's ceiling is
what a product of two large matrices reaches, in GFLOP a core-second; no way to run a network in the
same precision is faster than that by direct convolution. So the naive script's core-milliseconds,
divided by those of decoding and of the network at the ceiling, are the most that a run can be
faster. bfloat16 has a ceiling of its own where the processor has instructions for it (AMX): its
features differ, by the share of their norm that is shown. The aim: twice the naive script.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from end_to_end import Speed, Window, decode_speed, engine_speed, rival_speed
from machine import describe
from networks import weights_file
from photos import photos
from table import Row, show
from timm_script import make_folder

from featurize import load_backbone, run
from featurize.backbones.families import parse_layers
from featurize.engines.factory import open_engine
from featurize.errors import EngineError, RunInterruptedError

SIDE = 2048  # of the matrices whose product is the ceiling
VIT = "vit_small_patch16_224"
NETWORKS = ("resnet18", VIT)
ENGINES = ("eager", "onnxruntime", "compile")


def measure_ceiling(dtype: str, rounds: int) -> float:
    """GFLOP a core-second of a product of matrices, the best of some."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(SIDE, SIDE, generator=generator).to(getattr(torch, dtype)) for _ in "ab")
    seconds = []
    for _ in range(rounds + 1):  # the first one prepares
        start = time.process_time()
        a @ b
        seconds.append(time.process_time() - start)
    return 2 * SIDE**3 / min(seconds[1:]) / 1e9


def count_gflop(module: "Callable", crop: int) -> float:
    """GFLOP an image, of the matrix products and convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, crop, crop))
    return counter.get_total_flops() / 1e9


def our_speed(folder: Path, backbone: dict[str, str], seconds: float, **options: str) -> Speed:
    window = Window(seconds)
    with tempfile.TemporaryDirectory() as home, suppress(RunInterruptedError):
        run(folder, Path(home) / "c.h5", **backbone, report=window, **options)
    return window.speed


def measure(network: str, given: argparse.Namespace, ceilings: dict[str, float]) -> list[Row]:
    folder = photos(given.images)
    if network == VIT:
        source, rival, weights = make_folder(VIT), "timm", make_folder(VIT) / "model.safetensors"
        named = {"backbone": str(source)}
    else:
        rival, weights = "naive", weights_file(network)
        named = {"backbone": network, "weights": str(weights)}
    backbone = load_backbone(named["backbone"], named.get("weights"))
    layers = parse_layers("last", None, network) if network != VIT else [("pre_logits", "avg")]
    crop = backbone.preprocess.crop
    gflop = count_gflop(backbone.cut(layers), crop)
    decode = 1e3 * decode_speed(folder, backbone.preprocess, given.seconds).each
    pixels = np.random.default_rng(0).integers(0, 256, (8, crop, crop, 3), np.uint8)
    expected = open_engine(backbone, layers, name="eager", device="cpu").run(pixels)[0]
    rows: list[Row] = []
    for name, precision in [(name, "float32") for name in ENGINES] + [("eager", "bf16")]:
        row: Row = {"network": network, "engine": name, "precision": precision, "GFLOP": gflop}
        try:
            engine = open_engine(backbone, layers, name=name, device="cpu", precision=precision)
        except EngineError as error:
            rows.append({**row, "core-ms: network": str(error).partition(";")[0]})
            continue
        apart = engine.run(pixels)[0] - expected
        alone = 1e3 * engine_speed(engine, crop, given.seconds).each
        dtype = "bfloat16" if precision == "bf16" else "float32"
        at_ceiling = 1e3 * gflop / ceilings[dtype]
        paired = []
        for _ in range(given.rounds):
            theirs = rival_speed(rival, network, weights, folder, given.run_seconds)
            assert isinstance(theirs, Speed), theirs
            ours = our_speed(folder, named, given.run_seconds, engine=name, precision=precision)
            paired.append((theirs.each, ours.each, ours.rate / theirs.rate))
        theirs_each, ours_each, ratio = (
            statistics.median(column) for column in zip(*paired, strict=True)
        )
        rows.append({
            **row, "core-ms: network": alone, "at the ceiling": at_ceiling,
            "share of it": at_ceiling / alone, "decoding": decode, "a run": 1e3 * ours_each,
            "naive": 1e3 * theirs_each, "x naive, core-ms": theirs_each / ours_each,
            "x naive, images/s": ratio,
            "at most": 1e3 * theirs_each / (decode + at_ceiling),
            "features apart": float(np.linalg.norm(apart) / np.linalg.norm(expected)),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=4.0, help="of a measurement alone")
    options.add_argument("--run-seconds", type=float, default=15.0, help="of a run, at most")
    options.add_argument("--networks", default=",".join(NETWORKS))
    given = options.parse_args()
    print(describe())
    ceilings = {dtype: measure_ceiling(dtype, 10) for dtype in ("float32", "bfloat16")}
    show("The ceiling: a product of two matrices, GFLOP a core-second",
         [{"numbers": dtype, "GFLOP": found} for dtype, found in ceilings.items()])  # fmt: skip
    rows = [
        row for network in given.networks.split(",") for row in measure(network, given, ceilings)
    ]
    show("A run beside the naive script, and the most it can be", rows,
         "The aim: twice the naive script.")  # fmt: skip


if __name__ == "__main__":
    main()
