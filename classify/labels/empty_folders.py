"""Folders beside those of classes that hold no image: classes that somebody forgot to fill."""

from os import PathLike
from pathlib import Path

from classify.labels.table import LabelTable


def find_empty_folders(images: str | PathLike[str], table: LabelTable) -> list[str]:
    """Find folders that lie beside those of classes and hold no image.

    Parameters
    ----------
    images : path
        The image folder.
    table : LabelTable
        Of its folder names.

    Returns
    -------
    list of str
        Paths relative to `images`.
    """
    parents = {parent.as_posix() for path in table.paths for parent in Path(path).parents}
    class_folders = {
        Path(*parts[: parts.index(label) + 1])
        for path, label in zip(table.paths, table.labels, strict=True)
        if label in (parts := Path(path).parts)
    }
    beside = {
        folder.relative_to(images).as_posix()
        for place in {folder.parent for folder in class_folders}
        for folder in Path(images, place).iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
    }
    return sorted(beside - parents)
