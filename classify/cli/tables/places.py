"""Where a head is: the cells and words for cache and layers."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.text import Text

from classify.experiments.repeats import HeadSummary
from classify.heads.record import HeadResult, shorten_cache
from classify.heads.targets.record import TargetResult
from featurize.cli.console import make_text


def format_layer_cells(
    record: HeadResult | HeadSummary, joined: Mapping[str, str]
) -> Iterator[Text]:
    """Format the cells of a table that say where a head is.

    Parameters
    ----------
    record : HeadResult or HeadSummary
    joined : mapping of str to str
        As `classify.data.sets.cache_set.label_joined_layers` returns it.

    Yields
    ------
    Text
        The cache, where several are compared; the layers.
    """
    if record.cache is not None:
        yield make_text(shorten_cache(record.cache))
    yield make_text(joined.get(record.place, record.layer))


def format_fit_command(
    record: HeadResult | TargetResult,
    cache: Path,
    tables: Sequence[Path],
    options: Mapping[str, object],
) -> str:
    """Write the command that trains and saves a head of a comparison.

    Parameters
    ----------
    record : HeadResult or TargetResult
        The head; of one cache, as `fit` takes no more.
    cache : Path
    tables : sequence of Path
        The label tables of the comparison.
    options : mapping of str to object
        Further options of `fit` by name; those that are None are left out.

    Returns
    -------
    str
        Quoted for a shell.
    """
    words = ["classify", "fit", str(cache)]
    for table in tables:
        if table.stem == record.task:
            words += ["--labels", str(table)]
    given = {"head": record.head, "layer": record.layer.replace("+", ",")} | dict(options)
    for name, value in given.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return shlex.join([*words, "-o", f"{record.task}.head"])


def count_caches(caches: Mapping[str, str]) -> str:
    """Say how many caches were compared.

    Parameters
    ----------
    caches : mapping of str to str
        Those of a comparison; empty for one cache.

    Returns
    -------
    str
        ``one cache`` or ``2 caches``.
    """
    return f"{len(caches)} caches" if caches else "one cache"
