"""Shared by the torch engines: device, batch sizes, threads, precision, compiler cache."""

import atexit
import gc
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
from typing import Any

import torch

from featurize.engines.base import check_device_name
from featurize.errors import CallError
from featurize.system import cpu
from featurize.system.folders import find_kernel_folder

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PIXELS_PER_BATCH = 32 * 224 * 224
CACHE_DIR_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_CODECACHE_MODULE = "torch._inductor.codecache"
_imported_here: list[ModuleType] = []  # holds `_CODECACHE_MODULE` if this module imported it first


def resolve_device(name: str) -> str:
    """Resolve the name of a device on this machine.

    Parameters
    ----------
    name : str
        ``auto`` (a GPU if there is one, else the processor), ``cpu``, ``cuda`` or ``cuda:1``.

    Returns
    -------
    str
        ``cpu``, ``cuda`` or ``cuda:1``.

    Raises
    ------
    CallError
        If there is no such device.
    """
    check_device_name(name)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    if not torch.cuda.is_available():
        raise CallError("no CUDA device here; use --device cpu")
    if int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise CallError(f"there are {torch.cuda.device_count()} CUDA devices here, from cuda:0")
    return name


def check_tf32(device: str) -> None:
    """Check that a GPU has TF32: elsewhere torch would compute in float32 and not say so.

    Parameters
    ----------
    device : str
        As `resolve_device` returns it.

    Raises
    ------
    CallError
        If it has none.
    """
    if device != "cpu" and not torch.cuda.is_tf32_supported():
        raise CallError(f"--precision tf32: the GPU {device} has no TF32; use float32 or fp16")


def choose_batch_sizes(crop: int, device: str) -> tuple[int, int]:
    """Choose batch sizes that bound the memory used.

    Parameters
    ----------
    crop : int
        Side of the images, in pixels.
    device : str
        As `resolve_device` returns it.

    Returns
    -------
    first, largest : int
        Images per batch to begin with, and at most.
    """
    images = _PIXELS_PER_BATCH // crop**2
    if device == "cpu":
        return min(max(images, 8), 256), min(max(4 * images, 8), 1024)
    # Few images do not fill a GPU.
    return 8 * min(max(images, 8), 256), 8 * min(max(4 * images, 8), 1024)


def free_gpu_memory() -> None:
    """Give back the GPU's memory that nothing refers to, with that of graphs and compiled code."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def count_compute_threads() -> int:
    """Count the threads for arithmetic.

    Returns
    -------
    int
        One per physical core, or torch's limit if that is lower.
    """
    return min(torch.get_num_threads(), cpu.physical_cores())


@contextmanager
def precision_context(device: str, precision: str) -> Iterator[None]:
    """Set torch's precision and number of threads within a block; restore them afterwards.

    With ``float32`` no reduced precision is used, not even TF32. The user may have set the
    precision by either of torch's interfaces.

    Parameters
    ----------
    device : str
        As `resolve_device` returns it.
    precision : {"float32", "tf32", "bf16", "fp16"}

    Yields
    ------
    None
    """
    old_threads, n_threads = torch.get_num_threads(), count_compute_threads()
    autocast_dtype = AUTOCAST_DTYPES.get(precision)
    try:
        if n_threads != old_threads:
            torch.set_num_threads(n_threads)
        with (
            _float32_precision(allow_tf32=precision == "tf32"),
            torch.autocast(device.partition(":")[0], autocast_dtype)
            if autocast_dtype
            else nullcontext(),
        ):
            yield
    finally:
        if n_threads != old_threads:
            torch.set_num_threads(old_threads)


@contextmanager
def _float32_precision(*, allow_tf32: bool) -> Iterator[None]:
    """Set how float32 is computed, so that both of torch's interfaces say the same.

    The older interface raises an error where the newer one was used in some ways, and torch's own
    compiler still reads the older one.
    """
    backends: Any = torch.backends  # its stubs lack what is used here
    conv, rnn = backends.cudnn.conv, backends.cudnn.rnn
    settings = (
        *(backends.cuda.matmul, conv, rnn),
        *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
    )
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"  # a state in which the older interface answers
    old_matmul = torch.get_float32_matmul_precision()
    try:
        old_cudnn = backends.cudnn.allow_tf32
    except RuntimeError:  # it answers only what `conv` and `rnn` say now, which is False
        old_cudnn = True
    try:
        torch.set_float32_matmul_precision("high" if allow_tf32 else "highest")
        backends.cudnn.allow_tf32 = allow_tf32
        # Not "none", which would be inherited.
        conv.fp32_precision = rnn.fp32_precision = "tf32" if allow_tf32 else "ieee"
        yield
    finally:
        torch.set_float32_matmul_precision(old_matmul)
        backends.cudnn.allow_tf32 = old_cudnn
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def use_private_cache() -> dict[str, bool]:
    """Set a private cache folder for torch's compiler, unless the user has set one.

    By default the compiler unpickles files from ``/tmp/torchinductor_USER``, whoever owns that
    folder, so any other user of the machine could run code. Importing torchvision writes this
    default to the environment, so a value there may be torch's own.

    Returns
    -------
    dict of str to bool
        Options for the compiler. It stores precompiled headers in the folder for temporary files
        at the time its module was imported. If other code imported that module first, precompiled
        headers are switched off, and compilation takes minutes.
    """
    cache_dir = Path(os.environ.get(CACHE_DIR_VARIABLE, ""))
    is_torch_default = cache_dir.name.startswith("torchinductor_")
    is_torch_default = (
        is_torch_default and cache_dir.parent == Path(tempfile.gettempdir()).absolute()
    )
    if not cache_dir.name or is_torch_default:
        os.environ[CACHE_DIR_VARIABLE] = str(_make_private_folder())
    if _CODECACHE_MODULE not in sys.modules:
        old_tempdir, tempfile.tempdir = tempfile.tempdir, os.environ[CACHE_DIR_VARIABLE]
        try:
            _imported_here.append(import_module(_CODECACHE_MODULE))
        finally:
            tempfile.tempdir = old_tempdir
    return {"cpp_cache_precompile_headers": bool(_imported_here)}


def _make_private_folder() -> Path:
    try:
        kernel_folder = find_kernel_folder()
        own_folder = kernel_folder.parent
        own_folder.parent.mkdir(parents=True, exist_ok=True)
        for folder in (own_folder, kernel_folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            if not _is_private(folder):
                raise PermissionError(f"{folder} is not the user's alone")
    except (OSError, RuntimeError):  # no home, a full disk, another user's folder
        temporary_folder = tempfile.mkdtemp(prefix="headgraft-")
        atexit.register(shutil.rmtree, temporary_folder, ignore_errors=True)
        return Path(temporary_folder)
    return kernel_folder


def _is_private(folder: Path) -> bool:
    stat_result = folder.lstat()
    is_own = not hasattr(os, "geteuid") or stat_result.st_uid == os.geteuid()
    others_can_write = stat.S_IMODE(stat_result.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(stat_result.st_mode) and is_own and not others_can_write
