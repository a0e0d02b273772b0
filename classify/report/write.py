"""Write the report as one self-contained HTML file."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from classify.data.sets.cache_set import CachesLike, open_caches
from classify.errors import CallError, OutputError
from classify.experiments.compare import Comparison
from classify.experiments.targets.compare import TargetComparison
from classify.strategy.advise import Advice
from featurize.errors import CallError as SourceError
from featurize.files import atomic_write, check_target
from featurize.sources.opening import open_source
from featurize.sources.stores.addresses import redact_message

__all__ = ["check_report_path", "write_report"]

GENERATOR_TAG = b'<meta name="generator" content="Headgraft report">'
MAX_SNIFF_BYTES = 1024
REQUIRED_PACKAGES = ("bokeh", "jinja2")


def write_report(
    path: str | os.PathLike[str],
    cache: CachesLike,
    comparison: Comparison | TargetComparison,
    *,
    images: str | os.PathLike[str] | None = None,
    command: str | None = None,
    sources: Mapping[str, str] | None = None,
    seed: int | None = None,
    advice: Mapping[str, Advice] | None = None,
) -> None:
    """Write the results of a comparison as one self-contained HTML page.

    The page runs no scripts but its own, makes no requests, and opens from a file. An older report
    at `path` is replaced atomically.

    Parameters
    ----------
    path : path
        ``report.html``.
    cache : path or FeatureCache, or several
        The cache or caches of the comparison, in its order.
    comparison : Comparison or TargetComparison
        What `compare` gave.
    images : path or URL, optional
        The images of the cache, for thumbnails: a folder, or whatever they were taken from.
        Missing images are left out.
    command : str, optional
        The command line, for the provenance; credentials in URLs are left out.
    sources : mapping of str to str, optional
        By task name, where its labels come from, for the provenance.
    seed : int, optional
        Seed of the comparison, for the provenance.
    advice : mapping of str to Advice, optional
        By task name; shown in the task's section.

    Raises
    ------
    OutputError
        If the file cannot be written, or exists and is not a report.
    CallError
        If Bokeh or Jinja2 is missing, or there are no `images`.
    FeaturizeError, FileNotFoundError
        If the cache cannot be read.
    """
    path = check_report_path(path, images)
    from classify.report.page import build_page

    page = build_page(
        open_caches(cache),
        comparison,
        images=images,
        command=None if command is None else redact_message(command),
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
    """Check that a report can be written, before any work is done for it.

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
        If the folder is missing or not writable, or the file exists and is not a report.
    CallError
        If Bokeh or Jinja2 is missing, or there are no `images`.
    """
    missing = [name for name in REQUIRED_PACKAGES if find_spec(name) is None]
    if missing:
        raise CallError(f"the report needs {missing[0]}: pip install 'headgraft[report]'")
    if images is not None:
        try:
            open_source(images)
        except SourceError as error:
            raise CallError(
                f"--images: {error}; give what the cache was made from, or leave it out"
            ) from error
    return check_target(path, _is_report, "a report", OutputError)


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return GENERATOR_TAG in file.read(MAX_SNIFF_BYTES)
    except OSError:
        return False
