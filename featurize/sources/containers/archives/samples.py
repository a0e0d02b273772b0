"""Samples of WebDataset: which members belong together, and what they say of their image.

All before the first dot of a member's base name is the sample, all after it the component:
``train/0001.seg.png`` is component ``seg.png`` of sample ``train/0001``
(https://github.com/webdataset/webdataset).
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn

from featurize.errors import CallError, NoImagesError
from featurize.sources.containers.archives.archive_listing import MAX_COLUMNS
from featurize.sources.containers.split_names import find_split, to_split
from featurize.text import did_you_mean, format_count, list_choices, to_printable

ALL_COMPONENTS = "all"
MAX_COMPONENTS = 16  # with more, what follows the first dot is part of a file's name
MAX_LABEL_BYTES = {"cls": 1 << 10, "json": 64 << 10}
MAX_TEXT_CHARS = 200
MAX_NAME_CHARS = 64
RESERVED_COLUMNS = frozenset({"path"})  # of every label table


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into sample and component.

    Parameters
    ----------
    name : str

    Returns
    -------
    sample : str
        With its folder.
    component : str
        In small letters.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, component = base.partition(".")
    return folder + slash + stem, component.lower()


def parse_label(component: str, data: bytes) -> dict[str, str]:
    """Read what a member says of its sample's image.

    Parameters
    ----------
    component : {"cls", "json"}
    data : bytes
        Its content.

    Returns
    -------
    dict of str to str
        Text by column: ``label``, or the scalar fields of a JSON object. A longer text than
        `MAX_TEXT_CHARS`, a list or an object is left out.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    text = data.decode("utf-8-sig")
    if component == "cls":
        label = text.strip()
        if not label or len(label) > MAX_TEXT_CHARS or not label.isprintable():
            raise ValueError("no label")
        return {"label": label}
    try:
        fields = json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError("no object")
    texts = {name: _to_text(value) for name, value in fields.items() if _is_column(name)}
    return dict([(name, text) for name, text in texts.items() if text][:MAX_COLUMNS])


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_column(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME_CHARS and name.isprintable() and name not in RESERVED_COLUMNS


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value.strip() if isinstance(value, str) else ""
    return text if len(text) <= MAX_TEXT_CHARS and text.isprintable() else ""


def choose_components(root: str, shards: Iterable[list[str]], wanted: str | None) -> set[str]:
    """Choose which components of samples are images to take.

    Parameters
    ----------
    root : str
        Of the source, for messages.
    shards : iterable of list of str
        Names of the images of each shard.
    wanted : str, optional
        A component, or `ALL_COMPONENTS`.

    Returns
    -------
    set of str
        Empty for all.

    Raises
    ------
    CallError
        If no image is of the wanted component, or none is wanted and samples have several images.
    """
    if wanted == ALL_COMPONENTS:
        return set()
    counts: Counter[str] = Counter()
    among_others: set[str] = set()  # components of samples that have several images
    for names in shards:
        first: dict[str, str] = {}
        for name in names:
            sample, component = split_name(name)
            counts[component] += 1
            if (other := first.setdefault(sample, component)) != component:
                among_others |= {other, component}
    if wanted is not None:
        wanted = wanted.lower().removeprefix(".")
        if counts and wanted not in counts:
            known = [name for name, _ in counts.most_common(MAX_COMPONENTS)]
            raise NoImagesError(
                f"--component: the images in {root} are {list_choices(wanted, known)}"
            )
        return {wanted}
    if not 0 < len(among_others) <= MAX_COMPONENTS:
        return set()
    ordered = sorted(among_others, key=lambda name: (-counts[name], name))
    listed = ", ".join(f"{to_printable(name)} ({counts[name]:,})" for name in ordered)
    raise CallError(
        f"samples in {root} have several images: {listed}. Take one of each by --component "
        f"{to_printable(ordered[0])}, or every image by --component {ALL_COMPONENTS}"
    )


def find_splits(names: list[str]) -> dict[str, str]:
    """Tell the split of each shard by its name, or by the folder it lies in.

    Parameters
    ----------
    names : list of str
        Of all shards: ``train-000.tar``, ``imagenet-val-000.tar``, ``test/000.tar``.

    Returns
    -------
    dict of str to str
        ``train``, ``val`` or ``test`` by name; empty unless every shard has one.
    """
    splits = {name: find_split(name) for name in names}
    return splits if all(splits.values()) else {}


def check_split(wanted: str | None, splits: dict[str, str], root: str, n_shards: int) -> str | None:
    """Check that a wanted split is one of the shards' own.

    Parameters
    ----------
    wanted : str, optional
    splits : dict of str to str
        As of `find_splits`.
    root : str
        Of the source, for messages.
    n_shards : int

    Returns
    -------
    str, optional
        The split by the name that `find_splits` gives it.

    Raises
    ------
    CallError
        If it is none of them, or there are none.
    """
    if wanted is None:
        return None
    if not splits:
        raise CallError(
            f"--split {to_printable(wanted)}: the names of the {format_count(n_shards, 'shard')} "
            f"in {root} do not all say a split, as train-000.tar does; leave it out"
        )
    split = to_split(wanted)
    there = sorted(set(splits.values()))
    if split not in there:
        raise CallError(
            f"--split {to_printable(wanted)}: the shards in {root} are of {', '.join(there)}"
            f"{did_you_mean(wanted, there)}"
        )
    return split
