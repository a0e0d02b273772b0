"""A self-test: drawn images through the shipped backbone into a cache, and back.

They take the way of every image: decoded, run through the network, written, read. The numbers have
to be those that are stored here.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurize.diagnosis.child import ChildCheck, Emit, start_child
from featurize.progress import Report, Step

MAX_SECONDS = 300.0  # a few are usual; importing torch from a remote disk takes a minute
N_IMAGES, SIDE = 32, 96
STEPS = ("import torch", "draw images", "make a cache", "verify it", "compare numbers")
ADVICE = {
    "import torch": "install torch and torchvision anew: pip install --force-reinstall torch "
    "torchvision",
    "draw images": "set TMPDIR to a folder that can be written and has some megabytes free",
    "make a cache": "`featurize run IMAGES -o C.h5 --backbone seedling --debug` shows more; with a "
    "GPU, try --device cpu",
    "verify it": "files do not come back as they were written: set TMPDIR to another disk",
    "compare numbers": "the arithmetic of this installation differs: install torch anew; with a "
    "GPU, compare `featurize run --device cpu`",
}
COLUMNS = (0, 100, 200, 300, 400, 500)
"""Columns of the embedding that are compared, of the first four images."""
EXPECTED = (
    (0.24027, 0.81701, 0.68121, 1.32497, 0.0, 0.1166),
    (0.66958, 0.68763, 0.80749, 1.30344, 0.0, 0.26903),
    (0.56106, 0.707, 0.55243, 1.54358, 0.0, 0.26871),
    (0.30776, 0.69867, 0.45417, 1.76728, 0.0, 0.3737),
)
EXPECTED_NORMS = (11.49941, 12.2237, 12.50682, 12.98136)
TOLERANCE = 1e-3
"""Relative to the row's norm, as in `featurize.verify`: allows for another machine's arithmetic."""


@dataclass(frozen=True)
class SelfTestStep:
    """A step of the self-test.

    Attributes
    ----------
    name : str
        One of `STEPS`.
    ok : bool
        Whether it was successful.
    seconds : float
        What it took.
    problem : str
        What is wrong; empty if nothing is.
    advice : str
        What to do about it; empty if nothing is wrong.
    """

    name: str
    ok: bool
    seconds: float
    problem: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Device:
    """The device that ``--device auto`` takes.

    Attributes
    ----------
    kind : str
        ``cuda`` or ``cpu``.
    name : str
        The GPU's name, or the instructions that torch uses of the processor.
    memory_bytes : int or None
        Memory of the GPU; None for the processor.
    unused : str
        A GPU that is there and not used, and why. Empty if there is none.
    """

    kind: str
    name: str
    memory_bytes: int | None
    unused: str


@dataclass(frozen=True)
class SelfTest:
    """The result of the self-test.

    Attributes
    ----------
    ok : bool
        Whether all steps were successful.
    steps : tuple of SelfTestStep
        Those that were tried. The first that fails is the last.
    images : int
        How many images were embedded.
    decoded_per_second, run_per_second : float or None
        Images that one thread decodes, and that the network runs, in a second. The images are small
        and few, so only an order of magnitude. None if it did not come to that.
    difference : float or None
        Largest distance to the stored numbers, relative to the norm of the embedding.
    device : Device or None
        None if torch cannot be imported.
    """

    ok: bool
    steps: tuple[SelfTestStep, ...]
    images: int = 0
    decoded_per_second: float | None = None
    run_per_second: float | None = None
    difference: float | None = None
    device: Device | None = None


def run_self_test(report: Report) -> SelfTest:
    """Run the self-test in a child process, in a temporary folder.

    Parameters
    ----------
    report : callable
        Called with a `Step` for each step.

    Returns
    -------
    SelfTest
    """
    steps: list[SelfTestStep] = []
    facts: dict[str, Any] = {}
    report(Step("self-test", 0, len(STEPS), STEPS[0]))
    try:
        # A read-only working folder, or one without room, does not matter.
        with (
            tempfile.TemporaryDirectory(prefix="headgraft-doctor-") as folder,
            start_child("featurize.diagnosis.self_test", folder, MAX_SECONDS) as child,
        ):
            _collect(child, steps, facts, report)
    except OSError as error:
        steps.append(SelfTestStep("draw images", False, 0.0, str(error), ADVICE["draw images"]))
    if device := facts.pop("device", None):
        facts["device"] = Device(**device)
    ok = len(steps) == len(STEPS) and all(step.ok for step in steps)
    return SelfTest(ok, tuple(steps), **facts)


def _collect(
    child: ChildCheck, steps: list[SelfTestStep], facts: dict[str, Any], report: Report
) -> None:
    started = time.perf_counter()
    for found in child:
        name, problem, seconds = found["step"], found["problem"], found["seconds"]
        steps.append(SelfTestStep(name, not problem, seconds, problem, problem and ADVICE[name]))
        facts |= found["facts"]
        started = time.perf_counter()
        if len(steps) < len(STEPS):
            report(Step("self-test", len(steps), len(STEPS), STEPS[len(steps)]))
    if len(steps) < len(STEPS) and all(step.ok for step in steps):  # the process has ended early
        name, problem = STEPS[len(steps)], child.ended_by or "it ended the process"
        seconds = time.perf_counter() - started
        steps.append(SelfTestStep(name, False, seconds, problem, ADVICE[name]))


# --- in the child process ------------------------------------------------------------------


def check(folder: str, emit: Emit) -> None:
    """Run the steps, in the child process; stop at the first that fails.

    Parameters
    ----------
    folder : str
        Where to write.
    emit : callable
        Called for each step with its ``step``, ``seconds``, ``problem`` and ``facts``.
    """
    functions: tuple[Callable[[Path], dict[str, Any]], ...] = (
        _import_torch,
        _draw_images,
        _make_cache,
        _verify_cache,
        _compare_numbers,
    )
    for name, function in zip(STEPS, functions, strict=True):
        started, problem, facts = time.perf_counter(), "", {}
        try:
            facts = function(Path(folder))
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        emit({"step": name, "seconds": seconds, "problem": problem, "facts": facts})
        if problem:
            return


def _import_torch(_: Path) -> dict[str, Any]:
    import torch
    import torchvision  # noqa: F401 - its parts in C++ have to fit torch's

    memory_bytes, unused = None, ""
    if torch.cuda.is_available():
        kind, name = "cuda", torch.cuda.get_device_name(0)
        memory_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.zeros(1, device="cuda")
    else:
        kind, name = "cpu", torch.backends.cpu.get_cpu_capability()
        if Path("/proc/driver/nvidia").exists():
            build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has none"
            unused = f"NVIDIA's driver is here, but torch cannot use a GPU; it {build}"
        elif torch.backends.mps.is_available():
            unused = "Apple's GPU is here; Headgraft does not use it"
    device = {"kind": kind, "name": name, "memory_bytes": memory_bytes, "unused": unused}
    return {"device": device}


def _draw_images(folder: Path) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    (folder / "images").mkdir()
    y, x = np.mgrid[:SIDE, :SIDE]
    for k in range(N_IMAGES):
        planes = (x * (k + 1) + 3 * y, x * x // (k + 3) + y * y // 7, x ^ (y + 5 * k))
        pixels = (np.stack(planes, axis=-1) % 256).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{k:02}.png")
    return {}


def _make_cache(folder: Path) -> dict[str, Any]:
    from featurize.extraction.run import run

    last: list[Any] = []
    summary = run(
        folder / "images",
        folder / "cache.h5",
        backbone="seedling",
        engine="eager",
        report=lambda stats: last.append(stats),
    )
    if summary.failed or summary.rows != N_IMAGES:  # type: ignore[union-attr]
        raise RuntimeError(f"not all of the {N_IMAGES} drawn images were embedded: {summary}")
    facts: dict[str, Any] = {"images": N_IMAGES}
    with suppress(IndexError, ZeroDivisionError):
        seconds = last[-1].stage_seconds
        facts["decoded_per_second"] = N_IMAGES / seconds["decode"]
        facts["run_per_second"] = N_IMAGES / seconds["run"]
    return facts


def _verify_cache(folder: Path) -> dict[str, Any]:
    from featurize.extraction.verify import verify

    if problems := verify(folder / "cache.h5", folder / "images"):
        raise RuntimeError("; ".join(problems))
    return {}


def _compare_numbers(folder: Path) -> dict[str, Any]:
    import numpy as np

    from featurize.cache.reader import FeatureCache

    features = FeatureCache(folder / "cache.h5").features()[: len(EXPECTED)].astype(np.float64)
    expected_norms = np.array(EXPECTED_NORMS)
    distances = np.abs(features[:, COLUMNS] - np.array(EXPECTED)).max(axis=1)
    norm_distances = np.abs(np.linalg.norm(features, axis=1) - expected_norms)
    difference = float((np.maximum(distances, norm_distances) / expected_norms).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"embeddings are {difference:.1e} of their norm from the stored ones; {TOLERANCE:.0e} "
            "is allowed"
        )
    return {"difference": difference}
