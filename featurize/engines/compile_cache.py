"""Where torch keeps compiled kernels: in a folder that nobody else can write to."""

import atexit
import os
import shutil
import stat
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

CACHE_DIR_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_CODECACHE_MODULE = "torch._inductor.codecache"
_imported_here: list[ModuleType] = []  # that, where we were the first to import it


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
