"""The report: one HTML file that needs nothing but a browser."""

import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from classify.advice import Advice
from classify.comparison import Comparison
from classify.errors import CallError, OutputError
from classify.features import CacheOrPath, open_cache

__all__ = ["check_page", "write_report"]

GENERATOR = b'<meta name="generator" content="Headgraft report">'
HEAD_BYTES = 1024
NEEDED = ("bokeh", "jinja2")


def write_report(
    path: str | os.PathLike[str],
    cache: CacheOrPath,
    comparison: Comparison,
    *,
    images: str | os.PathLike[str] | None = None,
    command: str | None = None,
    sources: Mapping[str, str] | None = None,
    seed: int | None = None,
    advice: Mapping[str, Advice] | None = None,
) -> None:
    """Write what a comparison found as one self-contained page.

    The page runs no script but its own, fetches nothing, and opens from a file. An older report
    at `path` is replaced at once or not at all.

    Parameters
    ----------
    path : path
        ``report.html``.
    cache : path or FeatureCache
        The one that was compared on.
    comparison : Comparison
    images : path, optional
        The folder that the cache was made from, for small pictures. Images that are not there any
        more are left out.
    command, sources, seed : optional
        For the provenance: what was typed, where each task's labels come from, and the seed.
    advice : mapping of str to Advice, optional
        By the task's name: shown in its section.

    Raises
    ------
    OutputError
        If it cannot be written, or something that is not a report is there already.
    CallError
        If Bokeh or Jinja2 is missing, or `images` is not a folder.
    FeaturizeError, FileNotFoundError
    """
    check_page(path, images)
    from classify.pages.compose import compose

    page = compose(
        open_cache(cache),
        comparison,
        images=images,
        command=command,
        sources=sources,
        seed=seed,
        advice=advice or {},
    )
    _write(Path(os.path.realpath(path)), page)


def check_page(path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> None:
    """Refuse a report that cannot be written, before any work is done for it.

    Parameters
    ----------
    path, images : path
        As in `write_report`.

    Raises
    ------
    OutputError
        If the folder is missing or closed, or the file there is not a report.
    CallError
        If Bokeh or Jinja2 is missing, or `images` is not a folder.
    """
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        raise CallError(f"the report needs {absent[0]}: pip install 'headgraft[report]'")
    if images is not None and not Path(images).is_dir():
        raise CallError(f"--images {images} is not a folder; give the one the cache was made from")
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {path.parent}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
    if path.exists() and not (path.is_file() and (path.stat().st_size == 0 or _is_report(path))):
        raise OutputError(f"{path} exists and is not a report; give another -o, or remove it")


def _is_report(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return GENERATOR in file.read(HEAD_BYTES)
    except OSError:
        return False


def _write(path: Path, page: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            # A path given on the command line need not be UTF-8.
            file.write(page.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        raise
