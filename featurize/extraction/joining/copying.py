"""Copy the rows of parts to the file that becomes the joined cache."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from featurize.cache.builder import allocate_cache, estimate_cache_bytes
from featurize.cache.format import FAILED, MARKED, PENDING, list_container_records
from featurize.cache.integrity import is_unchecked
from featurize.cache.reader import FeatureCache
from featurize.cache.writer import CacheWriter
from featurize.errors import CacheReplacedError, CallError, OutputError
from featurize.extraction.completion.changes import COPY_CHUNK_BYTES
from featurize.extraction.completion.partial_cache import open_if_exists
from featurize.extraction.joining.join_plan import JoinPlan, hold_part
from featurize.progress import Progress, Step
from featurize.text import format_bytes, format_count, to_printable

_COLUMNS = ("status", "reason", "sha256", "size", "mtime_ns")


def joining_path(path: Path) -> Path:
    """Return the path of a cache that is being joined.

    A run that grows a cache leaves ``C.h5.part``, whose rows may be nowhere else. This file can
    be made again, so it has another name.

    Parameters
    ----------
    path : Path
        The cache.

    Returns
    -------
    Path
        ``C.h5.joining``.
    """
    return path.with_name(path.name + ".joining")


class PartsCopy:
    """Copies the rows of parts to the file that becomes the joined cache.

    Parameters
    ----------
    path : Path
        The joined cache.
    plan : JoinPlan
    report, say : callable
    """

    def __init__(
        self,
        path: Path,
        plan: JoinPlan,
        report: Callable[[Progress], None],
        say: Callable[[str], None],
    ) -> None:
        self._path, self._plan, self._report, self._say = path, plan, report, say
        self._joining = joining_path(path)
        row_bytes = sum(info.dim * np.dtype(info.dtype).itemsize for info in plan.layers.values())
        self._block_rows = max(1, COPY_CHUNK_BYTES // row_bytes)

    def run(self, former: FeatureCache | None) -> None:
        """Write the joined cache beside the one that is there, unless that is it already.

        Parameters
        ----------
        former : FeatureCache or None
            The cache that is there.

        Raises
        ------
        CallError, OutputError
            If `former` is one of the parts, or has rows that they do not have.
        CacheBusyError, CacheReplacedError
            If another process writes to a part, or has changed it.
        CacheFormatError
            If another file stands where the parts are joined.
        DiskFullError
            If there is no room.
        """
        if former is not None:
            _check_same_inode(former, self._plan)
            self._check_nothing_lost(former)
            if self._is_joined(former):
                self._say(f"{self._path} has all rows of the parts already, as they are")
                self._joining.unlink(missing_ok=True)
                return
        joined = self._open_joining()
        columns = {name: joined.column(name) for name in _COLUMNS}
        del joined
        with CacheWriter(self._joining) as writer:
            for number, file in enumerate(self._plan.files):
                with hold_part(file) as part:
                    self._copy_part(part, number, columns, writer)
        self._report(self._step(self._plan.starts[-1]))

    def _step(self, done: int) -> Step:
        return Step("joining", done, self._plan.starts[-1])

    def _rows(self, number: int) -> np.ndarray:
        return np.arange(self._plan.starts[number], self._plan.starts[number + 1])

    def _check_nothing_lost(self, former: FeatureCache) -> None:
        """Check that the parts have every finished image of the cache that would be replaced."""
        plan = self._plan
        unlike = [
            name for name, info in former.layers.items() if plan.layers.get(name) != info
        ] or list(former.extractor.differences(plan.extractor))
        if unlike:
            raise self._make_refusal(f"another {to_printable(unlike[0])}")
        status, sha256 = former.status, former.column("sha256")
        row_of, is_lost = former.row_of, status == MARKED
        is_known = np.zeros(former.n_rows, bool)
        for number, file in enumerate(plan.files):
            with hold_part(file) as part:
                old_rows = np.array([row_of.get(key, -1) for key in part.paths], np.intp)
                is_same = (part.column("sha256") == sha256[old_rows]).all(axis=1)
                is_same &= part.status == MARKED
            is_known[old_rows[old_rows >= 0]] = True
            is_lost[old_rows[(old_rows >= 0) & is_same]] = False
            self._report(Step("comparing", number + 1, len(plan.files)))
        lost = np.flatnonzero(is_lost | ~is_known)
        if len(lost):
            rows, first = format_count(len(lost), "row"), to_printable(former.paths[lost[0]])
            raise self._make_refusal(f"{rows} that they do not have, or as another image ({first})")

    def _make_refusal(self, what: str) -> OutputError:
        return OutputError(
            f"{self._path} is no join of these parts: it has {what}. It is left as it is; give "
            "another -o, or remove it first"
        )

    def _has_plans_layout(self, cache: FeatureCache) -> bool:
        """Tell whether a cache has the rows, layers and containers of the plan."""
        plan = self._plan
        records = [] if plan.places is None else list_container_records(plan.places, plan.stamps)
        return (
            cache.paths == plan.paths
            and cache.layers == plan.layers
            and cache.containers == records
            and cache.source == plan.source
            and (tuple(cache.include), tuple(cache.exclude)) == (plan.include, plan.exclude)
        )

    def _is_joined(self, former: FeatureCache) -> bool:
        """Tell whether a cache has all rows of the parts, as they are."""
        plan = self._plan
        if not self._has_plans_layout(former):
            return False
        columns = {name: former.column(name) for name in _COLUMNS}
        for number, file in enumerate(plan.files):
            rows = self._rows(number)
            with hold_part(file) as part:
                if ((columns["status"][rows] == PENDING) != (part.status == PENDING)).any():
                    return False
                checksums = {name: former.checksums(name, rows) for name in plan.layers}
                if _find_unlike_rows(part, rows, columns, checksums).any():
                    return False
        return True

    def _open_joining(self) -> FeatureCache:
        """Open the file that a join left which was stopped, or allocate it anew."""
        plan = self._plan
        earlier = open_if_exists(self._joining, "It stands where the parts are joined; remove it")
        if earlier is not None and self._has_plans_layout(earlier):
            is_pending = plan.status == PENDING
            if (earlier.status[is_pending] == PENDING).all():
                self._say(f"going on with {self._joining}")
                return earlier
        if earlier is not None:
            self._say(f"{self._joining} is of other parts, or of these as they were: begun again")
            del earlier
            self._joining.unlink()
        needed = estimate_cache_bytes(list(plan.layers.values()), len(plan.paths))
        self._say(f"{self._path} takes {format_bytes(needed)} beside the parts")
        allocate_cache(
            self._joining,
            plan.extractor,
            list(plan.layers.values()),
            plan.paths,
            plan.sizes,
            plan.stamps,
            root=plan.root,
            include=plan.include,
            exclude=plan.exclude,
            source=plan.source or None,
            places=plan.places,
        )
        return FeatureCache(self._joining)

    def _copy_part(
        self,
        part: FeatureCache,
        number: int,
        columns: dict[str, np.ndarray],
        writer: CacheWriter,
    ) -> None:
        """Copy the rows of a part that are not as they are in it."""
        rows, plan = self._rows(number), self._plan
        if part.paths != plan.paths[rows[0] : rows[-1] + 1] or part.layers != plan.layers:
            raise make_changed_error(part.path)
        checksums = {name: writer.read_rows(f"checksums/{name}", rows) for name in plan.layers}
        is_unlike = _find_unlike_rows(part, rows, columns, checksums)
        status, reason = part.status, part.column("reason")
        sha256, sizes, stamps = (part.column(name) for name in ("sha256", "size", "mtime_ns"))
        failed = np.flatnonzero(is_unlike & (status == FAILED))
        if len(failed):
            writer.record_failures(
                rows[failed], reason[failed], sha256[failed], sizes[failed], stamps[failed]
            )
        marked = np.flatnonzero(is_unlike & (status == MARKED))
        for start in range(0, len(marked), self._block_rows):
            block = marked[start : start + self._block_rows]
            writer.fill(
                rows[block],
                {name: part.stored(name, block) for name in plan.layers},
                sha256[block],
                sizes[block],
                stamps[block],
                {name: part.checksums(name, block) for name in plan.layers},
            )
            writer.flush_if_due()
            self._report(self._step(int(rows[block[-1]])))
        self._report(self._step(int(rows[-1])))


def _find_unlike_rows(
    part: FeatureCache,
    rows: np.ndarray,
    columns: dict[str, np.ndarray],
    checksums: dict[str, np.ndarray],
) -> np.ndarray:
    """Find the finished rows of a part that are not the same in a joined cache.

    A row that is pending in the part and finished in the joined cache is none of them.

    Parameters
    ----------
    part : FeatureCache
        With n rows.
    rows : int array of shape (n,)
        Of the joined cache.
    columns, checksums : dict of str to array
        Of all rows of the joined cache, and of `rows`.

    Returns
    -------
    bool array of shape (n,)
        Rows without a checksum are never known to be the same.
    """
    status, sha256 = part.status, part.column("sha256")
    is_unlike = np.zeros(len(rows), bool)
    for name in _COLUMNS:
        differs = part.column(name) != columns[name][rows]
        is_unlike |= differs.any(axis=1) if differs.ndim > 1 else differs
    is_unlike &= status != PENDING
    is_marked = status == MARKED
    for name, joined in checksums.items():
        own = part.checksums(name, np.arange(len(rows)))
        is_unlike |= is_marked & ((own != joined).any(axis=1) | is_unchecked(own, sha256))
    return is_unlike


def _check_same_inode(former: FeatureCache, plan: JoinPlan) -> None:
    """Refuse to replace one of the parts, under whatever name."""
    for file in plan.files:
        if file.samefile(former.path):
            raise CallError(f"{former.path} is one of the parts, {file}; give another -o")


def make_changed_error(path: Path) -> CacheReplacedError:
    """Make the error of parts that were changed meanwhile.

    Parameters
    ----------
    path : Path
        What was changed.

    Returns
    -------
    CacheReplacedError
        To be raised by the caller.
    """
    return CacheReplacedError(
        f"{path} was changed while it was joined; the same command goes on from there"
    )
