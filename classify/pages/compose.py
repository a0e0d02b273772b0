"""Puts a report together: everything that needs Bokeh and Jinja2 is imported from here."""

import os
import shlex
from collections.abc import Mapping

from classify.advice import Advice
from classify.comparison import Comparison
from classify.pages.pictures import Pictures
from classify.pages.provenance import facts
from classify.pages.render import Page, render
from classify.pages.section import sections
from featurize.cache import FeatureCache


def compose(
    cache: FeatureCache,
    comparison: Comparison,
    *,
    images: str | os.PathLike[str] | None,
    command: str | None,
    sources: Mapping[str, str] | None,
    seed: int | None,
    advice: Mapping[str, Advice],
) -> str:
    """A report as HTML; parameters as in `classify.pages.write_report`."""
    pictures = Pictures(cache, images)
    tasks = list(sections(cache, comparison, pictures, advice))
    rows = {row for task in tasks for row in task.mapped}
    dots = {row: url for row in sorted(rows) if (url := pictures.dot(row)) is not None}
    folder = shlex.quote(cache.root) if cache.root else "DIR"
    page = Page(
        title=cache.path.name,
        tasks=tasks,
        layers=list(cache.layers.values()),
        provenance=facts(cache, comparison, command=command, sources=sources or {}, seed=seed),
        pictured=bool(pictures),
        no_pictures=f"For pictures, give the image folder: --images {folder}",
    )
    return render(page, dots)
