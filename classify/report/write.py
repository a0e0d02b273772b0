"""The report: one HTML file that needs nothing but a browser."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from classify.data.features import CacheOrPath, open_cache
from classify.errors import CallError, OutputError
from classify.experiments.compare import Comparison
from classify.strategy.advise import Advice
from featurize.files import atomic_write, check_target

__all__ = ["check_report_path", "write_report"]

GENERATOR_TAG = b'<meta name="generator" content="Headgraft report">'
MAX_SNIFF_BYTES = 1024
REQUIRED_PACKAGES = ("bokeh", "jinja2")


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
    comparison : ListingDiff
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
    path = check_report_path(path, images)
    from classify.report.page import build_page

    page = build_page(
        open_cache(cache),
        comparison,
        images=images,
        command=command,
        sources=sources,
        seed=seed,
        advice=advice or {},
    )
    with atomic_write(path, error=OutputError) as file:
        # A path given on the command line need not be UTF-8.
        file.write(page.encode("utf-8", "backslashreplace"))


def check_report_path(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None
) -> Path:
    """Refuse a report that cannot be written, before any work is done for it.

    Parameters
    ----------
    path, images : path
        As in `write_report`.

    Returns
    -------
    Path
        Where to write it.

    Raises
    ------
    OutputError
        If the folder is missing or closed, or the file there is not a report.
    CallError
        If Bokeh or Jinja2 is missing, or `images` is not a folder.
    """
    absent = [name for name in REQUIRED_PACKAGES if find_spec(name) is None]
    if absent:
        raise CallError(f"the report needs {absent[0]}: pip install 'headgraft[report]'")
    if images is not None and not Path(images).is_dir():
        raise CallError(f"--images {images} is not a folder; give the one the cache was made from")
    return check_target(path, _is_report, "a report", OutputError)


def _is_report(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return GENERATOR_TAG in file.read(MAX_SNIFF_BYTES)
    except OSError:
        return False
