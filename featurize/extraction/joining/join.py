"""`join`: the parts of a cache become one ordinary cache."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurize.cache.builder import remove_temporary_files
from featurize.cache.format import PENDING
from featurize.cache.lock import WriteLock
from featurize.cache.parts.index import read_index
from featurize.cache.reader import FeatureCache
from featurize.errors import CallError, RunInterruptedError
from featurize.extraction.completion.partial_cache import open_if_exists
from featurize.extraction.joining.copying import PartsCopy, joining_path, make_changed_error
from featurize.extraction.joining.join_labels import join_label_tables
from featurize.extraction.joining.join_plan import plan_join
from featurize.extraction.single_cache import check_output_folder
from featurize.files import replace_durably
from featurize.progress import Progress, ignore
from featurize.system import signals
from featurize.text import format_count

_KEEP_ADVICE = "It is left as it is; give another -o"


@dataclass(frozen=True)
class JoinSummary:
    """What a join made.

    Attributes
    ----------
    cache : str
        The file.
    rows : int
        Its number of rows.
    """

    cache: str
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON.

        Returns
        -------
        dict of str to object
            The attributes by name.
        """
        return asdict(self)


def join(
    parts: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    report: Callable[[Progress], None] = ignore,
    say: Callable[[str], None] = ignore,
) -> JoinSummary:
    """Join a cache of parts into one cache file.

    All rows are copied as they are: finished, failed and pending ones, with their checksums. The
    labels that came with the images are joined beside the file. It is written as
    ``OUTPUT.joining`` and renamed when it is whole; after a kill the same call goes on.

    Memory holds a block of rows, and the keys.

    Parameters
    ----------
    parts : path
        The folder, as `run` made it.
    output : path
        The file to write, outside of that folder. A cache that is there is replaced if the parts
        have all its rows, as after an earlier join.
    report : callable
        Called with a `Progress` often.
    say : callable
        Called with a sentence about each choice made.

    Returns
    -------
    JoinSummary
        What was written.

    Raises
    ------
    CacheFormatError, FileNotFoundError
        If `parts` is not a cache of parts, one is missing, or they do not belong together.
    CallError
        If there is no folder for `output`, or it lies among the parts.
    CacheBusyError
        If another process writes to a part, or to `output`.
    DiskFullError, OutputError
        If `output` has other rows, or cannot be written.
    CacheReplacedError
        If the parts were changed while they were joined.
    RunInterruptedError
        On Ctrl-C; what was copied is kept.
    """
    folder, path = Path(parts), Path(os.path.realpath(output))
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; make it with `featurize run`")
    index = read_index(folder)
    whole = FeatureCache(folder)
    _check_output(path, folder)
    # Before a lock file is made, which would stay.
    open_if_exists(path, _KEEP_ADVICE)
    with WriteLock(path) as lock:
        lock.require_held()
        if lock.unsupported_reason:
            say(
                f"{path} cannot be locked ({lock.unsupported_reason}): let nothing else write to it"
            )
        remove_temporary_files(joining_path(path))
        former = open_if_exists(path, _KEEP_ADVICE)
        try:
            plan = plan_join(whole, report)
            PartsCopy(path, plan, report, say).run(former)
            if read_index(folder).parts != index.parts:
                raise make_changed_error(folder)
            if joining_path(path).exists():
                replace_durably(joining_path(path), path)
        except KeyboardInterrupt:
            signals.acknowledge()
            raise RunInterruptedError(_format_stop_message(path)) from None
        join_label_tables(plan.files, path, say)
    n_pending = int((plan.status == PENDING).sum())
    if n_pending:
        say(f"{format_count(n_pending, 'row')} of them pending; `featurize run` completes them")
    return JoinSummary(str(output), len(plan.paths))


def _check_output(path: Path, folder: Path) -> None:
    if path.is_dir():
        raise CallError(f"{path} is a folder; give the cache a file name: -o {path}.h5")
    check_output_folder(path)
    if path.parent.samefile(folder):
        raise CallError(f"{path} would lie among the parts; give an -o outside of {folder}")


def _format_stop_message(path: Path) -> str:
    if not joining_path(path).exists():
        return "stopped before anything was written"
    counts = FeatureCache(joining_path(path)).counts
    copied = counts["ok"] + counts["failed"]
    return (
        f"stopped; {copied:,} of {sum(counts.values()):,} rows are copied and kept in "
        f"{joining_path(path)}. The same command goes on from there"
    )
