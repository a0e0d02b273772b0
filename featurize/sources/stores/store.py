"""What a store is: files by name below a root, read whole or by ranges of bytes."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple, Protocol

from featurize.errors import ImageUnreadableError
from featurize.images.reading import ImageFile


class StoredFile(NamedTuple):
    """A file of a store.

    Attributes
    ----------
    name : str
        POSIX path below the store's root.
    size : int
        In bytes; -1 where only reading tells.
    stamp : int
        Version stamp: another one where the content may be another. 0 proves nothing.
    """

    name: str
    size: int
    stamp: int


class Store(Protocol):
    """Files below one root. It holds options only, so it can be pickled for other processes.

    Nothing but `list_files` and `stat_file` lists or asks for metadata; a store over a network
    makes one request for what `read_files` and `read_range` read of a file.
    """

    @property
    def root(self) -> str:
        """A folder or a URL, without any secret."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""
        ...

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        """List the files below a folder, in any order, without opening one.

        Parameters
        ----------
        folder : str
            Below the root.

        Yields
        ------
        StoredFile

        Raises
        ------
        CallError
            If the folder cannot be listed; the message has no secret.
        """
        ...

    def stat_file(self, name: str) -> StoredFile:
        """Look at one file.

        Parameters
        ----------
        name : str

        Returns
        -------
        StoredFile

        Raises
        ------
        CallError
            If there is none, or the store does not answer; the message has no secret.
        """
        ...

    def open_file(self, name: str) -> BinaryIO:
        """Open a file for reading and seeking.

        Parameters
        ----------
        name : str

        Returns
        -------
        binary file

        Raises
        ------
        ImageUnreadableError
            If it cannot be opened; its reason is a code of `featurize.images.reasons`.
        """
        ...

    def read_files(
        self, names: Sequence[str], stamps: Sequence[int]
    ) -> Iterator[tuple[int, ImageFile | ImageUnreadableError]]:
        """Read whole files; those of a network at once.

        Parameters
        ----------
        names : sequence of str
        stamps : sequence of int
            Their stamps as listed, which a store may give back where reading tells no other.

        Yields
        ------
        (int, ImageFile or ImageUnreadableError)
            Index in `names`, and the content. In any order.
        """
        ...

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Read a range of a file's bytes, in one request.

        Parameters
        ----------
        name : str
        start, stop : int

        Returns
        -------
        bytes
            Fewer than asked for at the file's end.

        Raises
        ------
        ImageUnreadableError
            If it cannot be read; its reason is a code of `featurize.images.reasons`.
        """
        ...
