"""Open a table of either format."""

from featurize.sources.containers.tables.arrow_file import ArrowFile
from featurize.sources.containers.tables.parquet_file import ParquetFile
from featurize.sources.stores.store import Store


def open_table(store: Store, name: str) -> ParquetFile | ArrowFile:
    """Open a table.

    Parameters
    ----------
    store : Store
    name : str
        With the suffix ``.parquet``, or else of an Arrow file or stream.

    Returns
    -------
    ParquetFile or ArrowFile
        To be closed.

    Raises
    ------
    CallError
        If pyarrow is missing.
    TABLE_ERRORS
        If it cannot be opened, or is no such file.
    """
    return ParquetFile(store, name) if is_parquet(name) else ArrowFile(store, name)


def is_parquet(name: str) -> bool:
    """Tell Parquet files from Arrow files by their names.

    Parameters
    ----------
    name : str

    Returns
    -------
    bool
    """
    return name.lower().endswith((".parquet", ".pq"))
