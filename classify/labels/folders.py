"""Infer labels and a split from folder names: decide what each level of folders names."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from classify.errors import CallError, LabelError
from featurize.text import did_you_mean, format_count, to_printable

TRAIN, VAL, TEST = "train", "val", "test"
SPLIT_WORDS = {
    TRAIN: ("train", "training", "trn", "trainval"),
    VAL: ("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"),
    TEST: ("test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"),
}
SPLIT_OF_WORD = {word: kind for kind, words in SPLIT_WORDS.items() for word in words}
# Words without meaning in a folder's name: `training_set`, `TestImages`, `valdata`.
FILLER_WORDS = (
    "dataset",
    "data",
    "images",
    "image",
    "imgs",
    "img",
    "sets",
    "set",
    "folder",
    "split",
)
MAX_LISTED = 3  # names in a message
MAX_LISTED_LEVELS = 6  # levels in an error message
MAX_NAME_CHARS = 80  # characters of a name

Folders = Mapping[tuple[str, ...], str]
"""Folders that hold images, as names from the top down; the value is the first image's path."""


@dataclass(frozen=True)
class FolderLabels:
    """What folder names give for some images.

    Attributes
    ----------
    labels : list of str, or None
        The label of each path, empty where a path has none. None where labels come from elsewhere.
    splits : list of str, or None
        ``train``, ``val`` or ``test`` for each path. None where the folders name no split.
    notice : str
        Which levels were used, for the user.
    """

    labels: list[str] | None
    splits: list[str] | None
    notice: str


def infer_folder_labels(paths: Sequence[str], level: int | None = None) -> FolderLabels:
    """Infer labels, and a split where there is one, from folder names.

    The topmost folders that tell images apart name the label. Where these are the parts of a split,
    they give the split, and the level below names the label. The names of parts may differ in case
    and share other words, as in ``seg_train`` and ``seg_test``. Ambiguous folders are refused.

    Parameters
    ----------
    paths : sequence of str
        POSIX, as in a feature cache.
    level : int, optional
        Which folder names the label: 1 for the topmost. The split then comes from any other level
        that is one; images in fewer folders have no label. Inferred if not given.

    Returns
    -------
    FolderLabels
        With labels.

    Raises
    ------
    CallError
        If `level` is below 1.
    LabelError
        If an image lies in no folder that could name its label, or several levels could.
    """
    parents, folders = _collect_folders(paths)
    label, split = (
        _find_levels(folders) if level is None else (level, _find_split_level(folders, level))
    )
    labels = ["".join(parent[label - 1 : label]) for parent in parents]
    splits = None if split is None else _assign_splits(parents, split)
    labelled = [i for i, name in enumerate(labels) if name]
    notice = (
        f"labels: {format_count(len(set(labels) - {''}), 'class', 'es')} from folder level {label}"
    )
    if level is None:
        notice += _describe_finer_level(folders, label)
    if split is not None:
        notice += (
            f"; split from level {split}: {_describe_parts([parents[i] for i in labelled], split)}"
        )
    elif level is not None and (mixed_level := _find_mixed_level(folders, level)):
        notice += f"; no split: beside parts of one, level {mixed_level} holds others"
    if len(labelled) < len(paths):
        notice += (
            f"; {format_count(len(paths) - len(labelled), 'image')} less deep, and without a label"
        )
    return FolderLabels(labels, splits, notice)


def infer_folder_split(paths: Sequence[str]) -> FolderLabels | None:
    """Infer a split alone from folder names: the topmost level that is one.

    Parameters
    ----------
    paths : sequence of str
        POSIX, as in a feature cache.

    Returns
    -------
    FolderLabels, or None
        Without labels. None where no level is a split.
    """
    parents, folders = _collect_folders(paths)
    for level in range(1, min(map(len, folders), default=0) + 1):
        if _is_split(_names_at_level(folders, level), allow_train_only=level == 1):
            notice = f"split from folder level {level}: {_describe_parts(parents, level)}"
            return FolderLabels(None, _assign_splits(parents, level), notice)
    return None


def _describe_finer_level(folders: Folders, label: int) -> str:
    """Describe the first level below the labels that may name them too; empty if none does."""
    labels = {names[label - 1] for names in folders}
    for level in range(label + 1, _max_depth(folders) + 1):
        finer = _names_at_level(folders, level)
        # The same name inside several classes is no name of a class.
        pairs = {names[label - 1 : label] + names[level - 1 : level] for names in folders}
        n_inside = len({pair for pair in pairs if len(pair) > 1})
        if n_inside == len(finer) > len(labels) and all(len(names) >= level for names in folders):
            return (
                f" ({_quote_names(*sorted(labels))}); the folders inside would give "
                f"{format_count(len(finer), 'class', 'es')} ({_quote_names(*sorted(finer))}): "
                f"add `--labels-level {level}`"
            )
    return ""


def _collect_folders(paths: Sequence[str]) -> tuple[list[tuple[str, ...]], Folders]:
    """Return each path's folders, and the distinct ones; paths of one folder share a tuple."""
    parent_folders: dict[str, tuple[str, ...]] = {}
    parents, folders = [], {}
    for path in paths:
        parent = path.rpartition("/")[0]
        if parent not in parent_folders:
            parent_folders[parent] = tuple(parent.split("/")) if parent else ()
            folders[parent_folders[parent]] = path
        parents.append(parent_folders[parent])
    return parents, folders


def _find_levels(folders: Folders) -> tuple[int, int | None]:
    """Find the level of the labels, and that of a split, from the top past lone folders."""
    level, split = 1, None
    _check_depth(folders, level)
    while len(_names_at_level(folders, level)) == 1 and _max_depth(folders) > level:
        if level == 1 and _is_split(_names_at_level(folders, level), allow_train_only=True):
            break
        level += 1
        _check_depth(folders, level)
    if _is_split(_names_at_level(folders, level), allow_train_only=level == 1):
        level, split = _find_label_level(folders, level), level
        _check_depth(folders, level, of_split=True)
        _check_part_classes(folders, level, split)
    else:
        _check_mixed_names(folders, level)
    _check_inside_classes(folders, level)
    return level, split


def _find_label_level(folders: Folders, split: int) -> int:
    """Find the level of the labels below a split, past folders that are alone in each part."""
    level = split + 1
    while all(len(names) > level for names in folders):
        part_and_name = {names[split - 1 : split] + names[level - 1 : level] for names in folders}
        if len(part_and_name) > len(_names_at_level(folders, split)):
            break
        level += 1
    return level


def _find_split_level(folders: Folders, label: int) -> int | None:
    """Find the level of a split, where that of the labels is given."""
    if label < 1:
        raise CallError(f"the level of the labels is 1 for the topmost folder, not {label}")
    labelled = {names: path for names, path in folders.items() if len(names) >= label}
    if not labelled:
        raise LabelError(
            f"no image lies in {label} folders, one in the other; {_offer_levels(folders)}"
        )
    for level in range(1, min(map(len, labelled)) + 1):
        level_names = _names_at_level(labelled, level)
        if level != label and _is_split(level_names, allow_train_only=level == 1, strict=False):
            return level
    return None


def _find_mixed_level(folders: Folders, label: int) -> int | None:
    """Find the first level other than the label level that names two or more parts of a split."""
    for level in range(1, _max_depth(folders) + 1):
        if level != label and len(_collect_splits(_names_at_level(folders, level))) > 1:
            return level
    return None


def _is_split(names: set[str], *, allow_train_only: bool, strict: bool = True) -> bool:
    """Tell whether the folders of a level are the parts of a split.

    Each is named like a part, one is for training, and the other words in their names are the same.
    With `allow_train_only`, ``train`` by itself is a split too.
    """
    matches = [_match_split(name) for name in names]
    kinds = {match[0] for match in matches if match}
    other_words = {match[1] for match in matches if match}
    if None in matches or TRAIN not in kinds or (strict and len(other_words) > 1):
        return False
    return len(kinds) > 1 or (allow_train_only and other_words == {()})


def _match_split(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return which part of a split a folder's name means, and the other words in the name."""
    text = re.sub(r"(?i)(hold|held)[\W_]*out", "holdout", name)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)  # TrainImages
    words = [_strip_filler(word) for word in re.findall(r"[^\W\d_]+", text.casefold())]
    kinds = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
    if len(kinds) != 1:
        return None
    return kinds.pop(), tuple(w for w in words if w not in SPLIT_OF_WORD and w not in FILLER_WORDS)


def _collect_splits(names: Iterable[str]) -> set[str]:
    return {match[0] for name in names if (match := _match_split(name))}


def _strip_filler(word: str) -> str:
    """Strip a filler word from the name of a part: ``trainset`` gives ``train``."""
    stems = (word.removesuffix(filler) for filler in FILLER_WORDS)
    return next((stem for stem in stems if stem in SPLIT_OF_WORD), word)


def _check_depth(folders: Folders, level: int, *, of_split: bool = False) -> None:
    """Refuse images that lie in fewer folders than `level`."""
    for names, path in folders.items():
        if len(names) < level:
            kind = "split folder" if of_split else "folder"
            place = (
                f"the {kind} {_quote_names('/'.join(names))}"
                if names
                else "the image folder itself"
            )
            raise LabelError(
                f"image {_quote_names(path)} lies directly in {place}, so no folder names its "
                f"label; {_offer_levels(folders, leaves_out=len(names))}"
            )


def _check_mixed_names(folders: Folders, level: int) -> None:
    """Refuse classes named like parts of a split; one without further folders may stay."""
    inside: dict[str, set[str]] = {}
    for names in folders:
        inside.setdefault(names[level - 1], set()).update(names[level : level + 1])
    split_like = [name for name in inside if _match_split(name)]
    if len(_collect_splits(split_like)) > 1 or any(len(inside[name]) > 1 for name in split_like):
        qualifier = "" if len(split_like) == len(inside) else " beside others"
        raise _ambiguity_error(f"folder level {level} holds names of splits{qualifier}", folders)


def _check_part_classes(folders: Folders, label: int, split: int) -> None:
    """Refuse a part of a split whose only folder is no class of the training part."""
    parts: dict[str, set[str]] = {}
    for names in folders:
        parts.setdefault(names[split - 1], set()).add(names[label - 1])
    train_classes = {
        name for part in parts if TRAIN in _collect_splits([part]) for name in parts[part]
    }
    for part, names_inside in parts.items():
        if len(names_inside) == 1 and len(train_classes) > 1 and not names_inside & train_classes:
            (name,) = names_inside
            problem = (
                f"{_quote_names(part)} holds one folder, {_quote_names(name)}, "
                f"which is no class of the training part{did_you_mean(name, train_classes)}"
            )
            raise _ambiguity_error(problem, folders)


def _check_inside_classes(folders: Folders, label: int) -> None:
    """Refuse classes that all contain the same folders: these may be the classes as well."""
    for level in range(label + 1, _max_depth(folders) + 1):
        inside: dict[str, set[str]] = {}
        for names in folders:
            inside.setdefault(names[label - 1], set()).update(names[level - 1 : level])
        kinds = _collect_splits(set().union(*inside.values()))
        if TRAIN in kinds and len(kinds) > 1:
            raise _ambiguity_error(
                f"folder level {level}, inside the classes, holds a split", folders
            )
        if len(inside) > 1 and len(set.intersection(*inside.values())) > 1:
            problem = f"every folder of level {label} has the same ones inside, in level {level}"
            raise _ambiguity_error(problem, folders)


def _ambiguity_error(problem: str, folders: Folders) -> LabelError:
    return LabelError(
        f"{problem}, so it is not clear which folder names the label; {_offer_levels(folders)}"
    )


def _offer_levels(folders: Folders, leaves_out: int | None = None) -> str:
    """Offer the options that settle the labels, for the end of an error message.

    Parameters
    ----------
    folders : mapping
    leaves_out : int, optional
        The depth of an image without a label: levels below leave it out.

    Returns
    -------
    str
        Levels that tell images apart, each with its labels: names of splits come last. Then a
        table, or folders to be made.
    """
    names_by_level = {
        level: _names_at_level(folders, level)
        for level in range(1, min(_max_depth(folders), MAX_LISTED_LEVELS) + 1)
    }
    levels = [level for level, names in names_by_level.items() if len(names) > 1]
    levels.sort(key=lambda level: any(map(_match_split, names_by_level[level])))
    offers = [
        f"`--labels-level {level}` for the labels {_quote_names(*sorted(names_by_level[level]))}"
        + (" without such images" if leaves_out is not None and level > leaves_out else "")
        for level in levels
    ]
    table = "a table with --labels T.csv (columns path,label[,split])"
    if not offers:
        return f"give {table}, or sort the images into folders, one for each label"
    return f"add {' or '.join(offers)}; or give {table}"


def _names_at_level(folders: Folders, level: int) -> set[str]:
    return {name for names in folders for name in names[level - 1 : level]}


def _max_depth(folders: Folders) -> int:
    return max(map(len, folders), default=0)


def _assign_splits(parents: Sequence[tuple[str, ...]], split: int) -> list[str]:
    split_of_name = {
        name: (_match_split(name) or ("", ()))[0]
        for parent in set(parents)
        for name in parent[split - 1 : split]
    }
    return [
        split_of_name["".join(parent[split - 1 : split])] if len(parent) >= split else ""
        for parent in parents
    ]


def _describe_parts(parents: Sequence[tuple[str, ...]], split: int) -> str:
    """Count the images of each part: ``120 train (seg_train), 40 test (seg_test)``."""
    count = Counter(parent[split - 1] for parent in parents)
    descriptions = []
    for part in (TRAIN, VAL, TEST):
        names = sorted(name for name in count if part in _collect_splits([name]))
        if names:
            folder_names = "" if names == [part] else f" ({_join_names(*names)})"
            descriptions.append(f"{sum(count[name] for name in names):,} {part}{folder_names}")
    return ", ".join(descriptions)


def _quote_names(*names: str) -> str:
    quoted = ", ".join(repr(to_printable(name, MAX_NAME_CHARS)) for name in names[:MAX_LISTED])
    return quoted + (f", ... ({len(names):,})" if len(names) > MAX_LISTED else "")


def _join_names(*names: str) -> str:
    return ", ".join(to_printable(name, MAX_NAME_CHARS) for name in names[:MAX_LISTED]) + (
        ", ..." if len(names) > MAX_LISTED else ""
    )
