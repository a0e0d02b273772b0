"""Render the report as one HTML file: templates, scripts, and a content security policy."""

import base64
import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from classify.data.sets.cache_set import list_caches
from classify.experiments.compare import Comparison
from classify.experiments.targets.compare import TargetComparison
from classify.report.leaderboard import format_decimal, format_interval, format_percent
from classify.report.provenance import Facts, collect_provenance
from classify.report.sections import TaskSection, build_sections
from classify.report.targets.sections import TargetSection, build_target_sections
from classify.report.thumbnails import MAP_PIXELS, Thumbnails
from classify.strategy.advise import Advice
from featurize.cache.format import LayerInfo
from featurize.cache.reader import FeatureCache

GENERATOR_NAME = "Headgraft report"


@dataclass(frozen=True)
class Page:
    """Content of the page, for the template.

    Attributes
    ----------
    title : str
    tasks : sequence of TaskSection or TargetSection
    layers : sequence of LayerInfo
    provenance : mapping of str to Facts
    has_pictures : bool
        Whether there are images for thumbnails.
    pictures_hint : str
        How to get thumbnails.
    """

    title: str
    tasks: Sequence[TaskSection | TargetSection]
    layers: Sequence[LayerInfo]
    provenance: Mapping[str, Facts]
    has_pictures: bool
    pictures_hint: str


def render_page(page: Page, pictures: Mapping[int, str]) -> str:
    """Render the page as HTML.

    Parameters
    ----------
    page : Page
    pictures : mapping of int to str
        ``data:`` URLs of the thumbnails in the maps, by row.

    Returns
    -------
    str
    """
    scripts = [_read_bokeh_script(), _read_template("page.js")]
    environment = Environment(
        loader=PackageLoader("classify.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": format_percent,
        "interval": format_interval,
        "decimal": format_decimal,
    }
    # Bokeh's JSON defines an object where it first occurs, so the order of keys must be kept.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    charts: dict[str, Any] = {
        chart.id: chart.item for task in page.tasks for chart in task.charts if chart.item
    }
    # Only our own files and Bokeh's are marked safe. All else is escaped, also JSON in scripts.
    return environment.get_template("page.html").render(
        page=page,
        generator=GENERATOR_NAME,
        policy=_make_content_policy(scripts),
        css=Markup(_read_template("page.css")),
        scripts=[Markup(script) for script in scripts],
        charts=charts,
        pictures={str(row): url for row, url in pictures.items()},
    )


def _make_content_policy(scripts: Sequence[str]) -> str:
    """Allow these scripts and images inside the page, and no requests.

    Bokeh creates style elements at run time, so styles cannot be allowed by hash.
    """
    hashes = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{code}'" for code in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _read_template(name: str) -> str:
    """Return the text of a template."""
    return files("classify.report").joinpath("templates", name).read_text(encoding="utf-8")


def _read_bokeh_script() -> str:
    """Return Bokeh's core script, without widgets, tables and MathJax."""
    parts = Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw
    script = "\n".join(parts)
    # Inside a script element the first would end it, and the second would hide its end.
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def build_page(
    cache: FeatureCache,
    comparison: Comparison | TargetComparison,
    *,
    images: str | os.PathLike[str] | None,
    command: str | None,
    sources: Mapping[str, str] | None,
    seed: int | None,
    advice: Mapping[str, Advice],
) -> str:
    """Build the report as HTML.

    Parameters
    ----------
    cache : FeatureCache
    comparison : Comparison or TargetComparison
    images, command, sources, seed, advice
        As in `classify.report.write.write_report`.

    Returns
    -------
    str
    """
    thumbnails = Thumbnails(cache, images)
    tasks: Sequence[TaskSection | TargetSection]
    if isinstance(comparison, TargetComparison):
        tasks = list(build_target_sections(cache, comparison, thumbnails))
    else:
        tasks = list(build_sections(cache, comparison, thumbnails, advice))
    rows = {row for task in tasks for row in task.map_rows}
    for row in rows:
        thumbnails.request(row, MAP_PIXELS)
    thumbnails.read()
    map_pictures = {
        row: thumbnail.url
        for row in sorted(rows)
        if (thumbnail := thumbnails.get(row, MAP_PIXELS)) is not None
    }
    root = shlex.quote(cache.root) if cache.root else "IMAGES"
    page = Page(
        title=", ".join(each.path.name for each in list_caches(cache).values()),
        tasks=tasks,
        layers=list(cache.layers.values()),
        provenance=collect_provenance(
            cache, comparison, command=command, sources=sources or {}, seed=seed
        ),
        has_pictures=bool(thumbnails),
        pictures_hint=f"For pictures, give the images: --images {root}",
    )
    return render_page(page, map_pictures)
