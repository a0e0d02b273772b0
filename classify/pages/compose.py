"""Puts a report together: everything that needs Bokeh and Jinja2 is imported from here."""

import os
import shlex
from collections.abc import Mapping

from classify.strategy.advise import Advice
from classify.experiments.compare import Comparison
from classify.report.thumbnails import Thumbnails
from classify.report.provenance import collect_provenance
from classify.report.page import Page, render_page
from classify.report.sections import build_sections
from featurize.cache.reader import FeatureCache


def build_page(
    cache: FeatureCache,
    comparison: Comparison,
    *,
    images: str | os.PathLike[str] | None,
    command: str | None,
    sources: Mapping[str, str] | None,
    seed: int | None,
    advice: Mapping[str, Advice],
) -> str:
    """A report as HTML; parameters as in `classify.report.write.write_report`."""
    pictures = Thumbnails(cache, images)
    tasks = list(build_sections(cache, comparison, pictures, advice))
    rows = {row for task in tasks for row in task.map_rows}
    dots = {
        row: url for row in sorted(rows) if (url := pictures.map_thumbnail_url(row)) is not None
    }
    folder = shlex.quote(cache.root) if cache.root else "DIR"
    page = Page(
        title=cache.path.name,
        tasks=tasks,
        layers=list(cache.layers.values()),
        provenance=collect_provenance(
            cache, comparison, command=command, sources=sources or {}, seed=seed
        ),
        has_pictures=bool(pictures),
        pictures_hint=f"For pictures, give the image folder: --images {folder}",
    )
    return render_page(page, dots)
