"""Blocks of places: what travels to a worker says where images are, and holds none of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurize.sources.listing import Container, ImageListing, ImagePlaces
from featurize.sources.source import ImageSource

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BLOCK_BYTES = 16 << 20  # of features: Ray hands them over when the whole block is done
MIN_BLOCKS_PER_ACTOR = 4  # or one would be idle while another ends
MAX_BLOCK_ROWS = 4096
# A processor takes seconds for these. What a block has computed is written when the block ends.
MAX_BLOCK_ROWS_ON_CPU = 256
DIGEST_BYTES = 32


@dataclass(frozen=True)
class SourceParts:
    """What is the same of all blocks of a listing.

    Attributes
    ----------
    source : ImageSource
    containers : list of Container, optional
        None where each image is a file of its own.
    has_row_numbers : bool
        As in `ImageListing`.
    """

    source: ImageSource
    containers: list[Container] | None
    has_row_numbers: bool

    @classmethod
    def of(cls, listing: ImageListing) -> "SourceParts":
        """Take them from a listing.

        Parameters
        ----------
        listing : ImageListing

        Returns
        -------
        SourceParts
        """
        containers = None if listing.places is None else listing.places.containers
        return cls(listing.source, containers, listing.has_row_numbers)


@dataclass(frozen=True)
class Block:
    """A block as a worker sees it.

    Attributes
    ----------
    number : int
    rows : int64 array of shape (n,)
        Rows of the cache.
    listing : ImageListing
        Of the block's n images alone, in the order of `rows`.
    recorded_sha256 : uint8 array of shape (n, 32), optional
        As in `featurize.pipeline.prefetch.ExtractionJob`.
    """

    number: int
    rows: np.ndarray
    listing: ImageListing
    recorded_sha256: np.ndarray | None


def choose_block_rows(row_bytes: int, n_rows: int, n_actors: int, *, on_gpu: bool) -> int:
    """Choose how many rows a block has.

    Parameters
    ----------
    row_bytes : int
        Of the features of one image, in all layers.
    n_rows : int
        Rows to compute.
    n_actors : int
        Workers that share them.
    on_gpu : bool
        Whether they compute on GPUs.

    Returns
    -------
    int
        At least 1.
    """
    largest = MAX_BLOCK_ROWS if on_gpu else MAX_BLOCK_ROWS_ON_CPU
    share = n_rows // (MIN_BLOCKS_PER_ACTOR * n_actors)
    return max(1, min(MAX_BLOCK_BYTES // max(row_bytes, 1), share, largest))


def split_blocks(listing: ImageListing, rows: np.ndarray, block_rows: int) -> list[np.ndarray]:
    """Split rows into blocks, each of images that are best read together.

    Parameters
    ----------
    listing : ImageListing
    rows : int array of shape (n,)
        Ascending.
    block_rows : int
        At most so many in each.

    Returns
    -------
    list of int array
    """
    chunks = listing.source.split_rows(listing, rows)
    ordered = np.concatenate([rows[:0], *chunks])
    return [ordered[start : start + block_rows] for start in range(0, len(ordered), block_rows)]


def make_place_tables(
    listing: ImageListing, blocks: Sequence[np.ndarray], recorded_sha256: np.ndarray | None
) -> Iterator["pa.Table"]:
    """Make the tables that travel to the workers.

    Parameters
    ----------
    listing : ImageListing
    blocks : sequence of int array
        Rows of each block.
    recorded_sha256 : uint8 array of shape (N, 32), optional

    Yields
    ------
    pa.Table
        A row for each image.
    """
    import pyarrow as pa

    for number, rows in enumerate(blocks):
        columns = {
            "block": pa.array(np.full(len(rows), number)),
            "row": pa.array(rows.astype(np.int64)),
            "key": pa.array([listing.paths[row] for row in rows.tolist()], pa.string()),
            "size": pa.array(listing.sizes[rows]),
            "stamp": pa.array(listing.stamps[rows]),
        }
        if listing.addresses is not None:
            addresses = [listing.addresses[row] for row in rows.tolist()]
            columns["address"] = pa.array(addresses, pa.string())
        if listing.places is not None:
            columns["container"] = pa.array(listing.places.container_of[rows].astype(np.int32))
            columns["offset"] = pa.array(listing.places.offsets[rows])
        if recorded_sha256 is not None:
            columns["recorded"] = to_binary_column(recorded_sha256[rows])
        yield pa.table(columns)


def open_block(table: "pa.Table", parts: SourceParts) -> Block:
    """Make a listing of a table's images.

    Parameters
    ----------
    table : pa.Table
        As `make_place_tables` makes it; at least one row.
    parts : SourceParts
        Of the listing it is from.

    Returns
    -------
    Block
    """
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    numbers = {
        name: columns[name].to_numpy()
        for name in ("block", "row", "size", "stamp", "container", "offset")
        if name in columns
    }
    places = None
    if parts.containers is not None:
        places = ImagePlaces(parts.containers, numbers["container"], numbers["offset"])
    listing = ImageListing(
        parts.source,
        columns["key"].to_pylist(),
        numbers["size"],
        numbers["stamp"],
        places=places,
        addresses=columns["address"].to_pylist() if "address" in columns else None,
        has_row_numbers=parts.has_row_numbers,
    )
    recorded = from_binary_column(columns["recorded"]) if "recorded" in columns else None
    return Block(int(numbers["block"][0]), numbers["row"], listing, recorded)


def to_binary_column(digests: np.ndarray) -> "pa.Array":
    """Make a column of hashes.

    Parameters
    ----------
    digests : uint8 array of shape (n, 32)

    Returns
    -------
    pa.FixedSizeBinaryArray
        Of n hashes.
    """
    import pyarrow as pa

    buffer = pa.py_buffer(np.ascontiguousarray(digests).tobytes())
    return pa.Array.from_buffers(pa.binary(DIGEST_BYTES), len(digests), [None, buffer])


def from_binary_column(column: "pa.Array") -> np.ndarray:
    """Read a column of hashes.

    Parameters
    ----------
    column : pa.FixedSizeBinaryArray
        Of n hashes.

    Returns
    -------
    uint8 array of shape (n, 32)
    """
    digests = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, DIGEST_BYTES)
    return digests[column.offset : column.offset + len(column)]
