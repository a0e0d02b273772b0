"""What engines that run torch share: device, batch sizes, threads, precision, compiled kernels."""

import atexit
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from featurize.errors import CallError
from featurize.system import cpu

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PIXELS_PER_BATCH = 32 * 224 * 224
CACHE_DIR_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_CODECACHE_MODULE = "torch._inductor.codecache"
_imported_here: list[ModuleType] = []  # that, where we were the first to import it


def resolve_device(name: str) -> str:
    """Find the device that a name means on this machine.

    Parameters
    ----------
    name : str
        ``auto`` takes a GPU where there is one; else ``cpu``, ``cuda`` or ``cuda:1``.

    Returns
    -------
    str
        Any of them but ``auto``.

    Raises
    ------
    CallError
        If it is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    if not torch.cuda.is_available():
        raise CallError("no CUDA device here; use --device cpu")
    if int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise CallError(f"there are {torch.cuda.device_count()} CUDA devices here, from cuda:0")
    return name


def choose_batch_sizes(crop: int, device: str) -> tuple[int, int]:
    """Choose how many images to run at once, so that memory stays bounded.

    Parameters
    ----------
    crop : int
        Side of the images, in pixels.
    device : str
        As `resolve_device` gives it.

    Returns
    -------
    first, largest : int
        To begin with, and at most.
    """
    images = _PIXELS_PER_BATCH // crop**2
    scale = 1 if device == "cpu" else 4
    return scale * min(max(images, 8), 256), scale * min(max(4 * images, 8), 1024)


def count_compute_threads() -> int:
    """Count threads for arithmetic: one a physical core, fewer where torch is limited to fewer."""
    return min(torch.get_num_threads(), cpu.physical_cores())


@contextmanager
def precision_context(device: str, precision: str) -> Iterator[None]:
    """Set torch's switches for a precision, and its threads; restore them afterwards.

    float32 means float32: the faster formats are used only where they are asked for.

    Parameters
    ----------
    device : str
        As `resolve_device` gives it.
    precision : {"float32", "tf32", "bf16", "fp16"}
    """
    threads, wanted_threads = torch.get_num_threads(), count_compute_threads()
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    dtype = _AUTOCAST_DTYPES.get(precision)
    try:
        if wanted_threads != threads:
            torch.set_num_threads(wanted_threads)
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        with torch.autocast(device.partition(":")[0], dtype) if dtype else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn
        if wanted_threads != threads:
            torch.set_num_threads(threads)


def use_private_cache() -> dict[str, bool]:
    """Point torch's compiler at a folder of our own, unless the user has named one.

    Left alone it takes ``/tmp/torchinductor_USER``, whoever made that, and unpickles what lies
    there: any other user of the machine could have code run. It also names that folder in the
    environment, as soon as torchvision is imported, so that a name there may be torch's own.

    Returns
    -------
    dict of str to bool
        Options for the compiler. Headers that it compiles beforehand lie where the folder for
        temporary files was when its code was imported. Where others have imported that before us
        it does without such headers, which takes minutes.
    """
    named = Path(os.environ.get(CACHE_DIR_VARIABLE, ""))
    torchs_own = named.name.startswith("torchinductor_")
    torchs_own = torchs_own and named.parent == Path(tempfile.gettempdir()).absolute()
    if not named.name or torchs_own:
        os.environ[CACHE_DIR_VARIABLE] = str(_make_private_folder())
    if _CODECACHE_MODULE not in sys.modules:
        before, tempfile.tempdir = tempfile.tempdir, os.environ[CACHE_DIR_VARIABLE]
        try:
            _imported_here.append(import_module(_CODECACHE_MODULE))
        finally:
            tempfile.tempdir = before
    return {"cpp_cache_precompile_headers": bool(_imported_here)}


def _make_private_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()
    ours = base / "headgraft"
    try:
        base.mkdir(parents=True, exist_ok=True)
        for folder in (ours, ours / "inductor"):
            folder.mkdir(mode=0o700, exist_ok=True)
            if not _is_private(folder):
                raise PermissionError(f"{folder} is not the user's alone")
    except (OSError, RuntimeError):  # no home, a full disk, somebody else's folder
        private = tempfile.mkdtemp(prefix="headgraft-")
        atexit.register(shutil.rmtree, private, ignore_errors=True)
        return Path(private)
    return ours / "inductor"


def _is_private(folder: Path) -> bool:
    found = folder.lstat()
    mine = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    others = stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and mine and not others
