"""Fetch what comes back in a thread: who waits for it has more to do than to wait."""

import queue
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

CHECK_SECONDS = 0.5  # until a thread sees that nobody takes its table any more


class FetchedTables:
    """Tables that are made in a thread, at most one of them ahead.

    Parameters
    ----------
    tables : iterable of pa.Table
    """

    def __init__(self, tables: Iterable["pa.Table"]) -> None:
        self._tables = tables
        self._queue: queue.Queue[pa.Table | BaseException | None] = queue.Queue(1)
        self._is_closed = threading.Event()
        threading.Thread(target=self._fetch, name="fetch", daemon=True).start()

    def get(self, seconds: float) -> "pa.Table | None":
        """Wait for the next table.

        Parameters
        ----------
        seconds : float
            At most so long.

        Returns
        -------
        pa.Table or None
            None at the end.

        Raises
        ------
        queue.Empty
            If none came in time.
        BaseException
            What making one raised.
        """
        item = self._queue.get(timeout=seconds)
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Take no further table; do not wait for the one that is being fetched."""
        self._is_closed.set()

    def _fetch(self) -> None:
        end: BaseException | None = None
        try:
            for table in self._tables:
                if not self._put(table):
                    return
        except BaseException as error:  # raised again by `get`
            end = error
        self._put(end)

    def _put(self, item: "pa.Table | BaseException | None") -> bool:
        """Wait until there is room; return False if there will be none."""
        while not self._is_closed.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=CHECK_SECONDS)
                return True
        return False
