"""Files of a folder of this machine."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featurize.errors import CallError, ImageUnreadableError
from featurize.images import reading
from featurize.images.reading import ImageFile
from featurize.sources.stores.store import StoredFile


@dataclass(frozen=True)
class LocalStore:
    """Files below a folder.

    Parameters
    ----------
    root : str
        The folder.
    follow : bool
        Whether to list files that links outside of the folder lead to.
    """

    root: str
    follow: bool = False
    is_remote = False

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        """List the files below a folder; see `Store.list_files`. Hidden ones are left out."""
        top = Path(self.root, folder)
        if not top.is_dir():
            problem = "is not a folder" if top.exists() else "does not exist"
            raise CallError(f"{top} {problem}; give the folder that holds the files")
        for parent, folders, names in os.walk(top):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(parent, name)
                if not name.startswith(".") and path.is_file() and self.holds(path):
                    yield self._describe(path)

    def stat_file(self, name: str) -> StoredFile:
        """Look at one file; see `Store.stat_file`."""
        path = Path(self.root, name)
        if not path.is_file():
            problem = "is not a file" if path.exists() else "does not exist"
            raise CallError(f"{path} {problem}")
        return self._describe(path)

    def open_file(self, name: str) -> BinaryIO:
        """Open a file for reading and seeking; see `Store.open_file`."""
        path = Path(self.root, name)
        try:
            return path.open("rb")
        except OSError as error:
            raise reading.to_unreadable_error(error, str(path)) from error

    def read_files(
        self, names: Sequence[str], stamps: Sequence[int]
    ) -> Iterator[tuple[int, ImageFile | ImageUnreadableError]]:
        """Read whole files, with the stamps they have now; see `Store.read_files`."""
        for i, name in enumerate(names):
            try:
                yield i, reading.read_image_file(join_path(self.root, name))
            except ImageUnreadableError as error:
                yield i, error

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Read a range of a file's bytes; see `Store.read_range`."""
        with self.open_file(name) as file:
            try:
                file.seek(start)
                return file.read(stop - start)
            except OSError as error:
                raise reading.to_unreadable_error(error, str(Path(self.root, name))) from error

    def holds(self, path: Path) -> bool:
        """Tell whether a file lies in the folder, or links may lead out of it.

        Parameters
        ----------
        path : Path
            Below the root, as spelt.

        Returns
        -------
        bool
        """
        return self.follow or path.resolve().is_relative_to(Path(self.root).resolve())

    def _describe(self, path: Path) -> StoredFile:
        status = path.stat()
        name = path.relative_to(self.root).as_posix()
        return StoredFile(name, status.st_size, reading.stamp_of_file(status))


def join_path(root: str | os.PathLike[str], path: str) -> bytes:
    """Join a folder and an image's path below it, which is UTF-8 in any locale.

    Parameters
    ----------
    root : path
        The folder.
    path : str
        POSIX path relative to the folder.

    Returns
    -------
    bytes
        Encoded path of the image.
    """
    return os.path.join(os.fsencode(root), path.encode())  # noqa: PTH118 - paths of bytes
