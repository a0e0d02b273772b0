"""What the machine and the environment offer: cores, memory, folders, settings."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featurize.system import cpu, memory
from featurize.system.folders import find_cache_home, find_kernel_folder

# What changes how much is used of the machine, or where files are looked for.
SETTINGS = (
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT"),
    *("TORCH_HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE"),
    *("OMP_PROC_BIND", "KMP_AFFINITY", "CUDA_VISIBLE_DEVICES", "LOKY_MAX_CPU_COUNT"),
)
SECRET_SETTINGS = ("HTTPS_PROXY", "https_proxy", "HF_TOKEN")  # their values may hold passwords


@dataclass(frozen=True)
class Folder:
    """A folder that Headgraft reads or writes.

    Attributes
    ----------
    purpose : str
        ``working folder``; ``hub`` and ``torch``, where each keeps downloaded weights;
        ``compiled kernels``.
    path : str
        Where it is.
    exists : bool
        Whether it is there.
    writable : bool
        Whether it can be written, or made.
    free_bytes : int or None
        Free on its disk; None if that cannot be found out.
    """

    purpose: str
    path: str
    exists: bool
    writable: bool
    free_bytes: int | None


@dataclass(frozen=True)
class Machine:
    """The machine, as far as this process may use it.

    Attributes
    ----------
    processor : str
        The processor's name; empty if the system does not say it.
    usable_cores, physical_cores : int
        Logical and physical cores.
    memory_bytes : int
        Memory that is free.
    folders : tuple of Folder
        The folders that Headgraft reads or writes.
    settings : mapping of str to str
        Environment variables that matter and are set. Values that may hold passwords are left out.
    """

    processor: str
    usable_cores: int
    physical_cores: int
    memory_bytes: int
    folders: tuple[Folder, ...]
    settings: Mapping[str, str]


def describe_machine() -> Machine:
    """Describe the machine; nothing is left behind in its folders.

    Returns
    -------
    Machine
    """
    settings = {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}
    settings |= {name: "(set)" for name in SECRET_SETTINGS if os.environ.get(name)}
    return Machine(
        processor=_read_processor_name(),
        usable_cores=cpu.usable_cores(),
        physical_cores=cpu.physical_cores(),
        memory_bytes=memory.read_available_bytes(),
        folders=_list_folders(),
        settings=settings,
    )


def _list_folders() -> tuple[Folder, ...]:
    folders = [_describe_folder("working folder", Path())]
    try:
        cache_home, kernels = find_cache_home(), find_kernel_folder()
    except RuntimeError:  # the user has no home
        return tuple(folders)
    hub_home = os.environ.get("HF_HOME") or str(cache_home / "huggingface")
    torch_home = os.environ.get("TORCH_HOME") or str(cache_home / "torch")
    hub = os.environ.get("HF_HUB_CACHE") or f"{hub_home}/hub"
    folders.append(_describe_folder("hub", Path(hub)))
    folders.append(_describe_folder("torch", Path(torch_home) / "hub" / "checkpoints"))
    if kernels.exists():
        folders.append(_describe_folder("compiled kernels", kernels))
    return tuple(folders)


def _describe_folder(purpose: str, path: Path) -> Folder:
    try:
        path = path.expanduser().absolute()
        nearest = next(folder for folder in (path, *path.parents) if folder.exists())
        exists = nearest == path
        writable = _can_write(nearest)
        free_bytes = shutil.disk_usage(nearest).free
    except (OSError, RuntimeError, StopIteration):  # removed, no home, not to be read
        return Folder(purpose, str(path), False, False, None)
    return Folder(purpose, str(path), exists, writable, free_bytes)


def _can_write(folder: Path) -> bool:
    # Permissions do not say it: a disk may be mounted read-only. The file has no name.
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _read_processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")
