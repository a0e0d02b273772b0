"""Which column of a table holds its images, and what its other columns say of them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from featurize.errors import CallError
from featurize.text import did_you_mean, list_first, to_printable

MAX_COLUMNS = 32  # that say something of the images; the others are left out
MAX_TEXT_CHARS = 200  # a column with longer text holds no labels
MAX_METADATA_BYTES = 16 << 20  # of the JSON of Hugging Face; ImageNet's 21,841 names take 1 MB
FIRST_COLUMNS = ("label", "split", "group")  # taken before others where there are too many
RESERVED_COLUMN = "path"  # the key, in the table of labels that is made of these columns

TOO_LONG = f"it has text of more than {MAX_TEXT_CHARS} characters"
TOO_MANY = f"an image has at most {MAX_COLUMNS} columns"
RESERVED = f"`{RESERVED_COLUMN}` is what the images' own column is called"
NO_NAME = f"a column's name is 1 to {MAX_TEXT_CHARS} characters, and there once"


@dataclass(frozen=True)
class TableSchema:
    """What the columns of a table are for.

    Attributes
    ----------
    image_column : str
        Holds encoded images, or structs of ``bytes`` and ``path``.
    columns : list of str
        Those that say something of each image.
    class_names : dict of str to list of str
        Names of the numbers of a column, as of Hugging Face's ``ClassLabel``.
    left_out : dict of str to str
        Why a column says nothing, by name.
    notes : list of str
        What of the schema's metadata is ignored: sentences without a subject.
    """

    image_column: str
    columns: list[str]
    class_names: dict[str, list[str]]
    left_out: dict[str, str]
    notes: list[str] = field(default_factory=list)


def import_pyarrow() -> Any:
    """Import what reads tables.

    Returns
    -------
    module
        ``pyarrow``, with ``compute``, ``ipc`` and ``parquet``.

    Raises
    ------
    CallError
        If it is not installed.
    """
    # Files of strangers: since pyarrow 14.0.1 no type of theirs is unpickled, and since 17, the
    # lowest version that is supported, `pyarrow.PyExtensionType` does nothing unless switched on.
    try:
        import pyarrow as pa
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise CallError(
            'Parquet and Arrow tables need pyarrow: pip install "headgraft[parquet]"'
        ) from error
    return pa


def read_table_schema(schema: Any, column: str | None = None) -> TableSchema:
    """Read what the columns of a table are for.

    The images are in `column`, or in the only column that is an image by the metadata of Hugging
    Face, or else in the only column of bytes.

    Parameters
    ----------
    schema : pyarrow.Schema
    column : str, optional

    Returns
    -------
    TableSchema

    Raises
    ------
    CallError
        If no column holds images, or several do; a message without a subject.
    """
    features, notes = _read_features(schema.metadata or {})
    repeated = {name for name, count in Counter(schema.names).items() if count > 1}
    fields = [each for each in schema if each.name not in repeated]
    candidates = [each.name for each in fields if _can_hold_images(each.type)]
    image_column = _choose_image_column(candidates, features, column, schema.names)
    columns, left_out, class_names = [], {}, {}
    for each in fields:
        problem = find_column_problem(each.name) or find_type_problem(each.type)
        if each.name == image_column:
            continue
        if problem:
            left_out[each.name] = problem
            continue
        columns.append(each.name)
        feature = features.get(each.name)
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            if (names := _check_class_names(feature.get("names"), each.type)) is not None:
                class_names[each.name] = names
            else:
                notes.append(
                    f"the class names of column {to_printable(repr(each.name))} are no list of "
                    "distinct texts; its numbers are taken"
                )
    left_out |= dict.fromkeys(repeated, NO_NAME)
    columns, others = choose_columns(columns)
    left_out |= dict.fromkeys(others, TOO_MANY)
    return TableSchema(image_column, columns, class_names, left_out, notes)


def find_column_problem(name: str) -> str:
    """Say why a column cannot say anything of the images, by its name.

    Parameters
    ----------
    name : str

    Returns
    -------
    str
        Empty if it can.
    """
    if name == RESERVED_COLUMN:
        return RESERVED
    is_name = 0 < len(name) <= MAX_TEXT_CHARS and "\0" not in name
    return "" if is_name and name.strip() else NO_NAME


def choose_columns(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Choose which columns are taken where there are too many.

    Parameters
    ----------
    names : sequence of str

    Returns
    -------
    taken, others : list of str
    """
    ranked = sorted(names, key=lambda name: name not in FIRST_COLUMNS)
    taken = set(ranked[:MAX_COLUMNS])
    return [name for name in names if name in taken], ranked[MAX_COLUMNS:]


def _can_hold_images(kind: Any) -> bool:
    """Tell whether a column is of bytes, or of structs of ``bytes`` and ``path``."""
    types = import_pyarrow().types
    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if names.count("bytes") != 1 or names.count("path") > 1:
            return False
        if "path" in names and not _is_text(types, kind.field("path").type):
            return types.is_null(kind.field("path").type) and _can_hold_bytes(kind)
        return _can_hold_bytes(kind)
    return _is_bytes(types, kind)


def _can_hold_bytes(kind: Any) -> bool:
    types, inner = import_pyarrow().types, kind.field("bytes").type
    return _is_bytes(types, inner) or types.is_null(inner)


def _is_bytes(types: Any, kind: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(types: Any, kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind))


def find_type_problem(kind: Any) -> str:
    """Say why a column cannot be text, by its type.

    Parameters
    ----------
    kind : pyarrow.DataType

    Returns
    -------
    str
        Empty if it can.
    """
    types = import_pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if (
        _is_text(types, kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
    ):
        return ""
    return "only text, numbers and truth values say something of an image"


def _choose_image_column(
    candidates: list[str], features: dict[str, Any], column: str | None, names: Sequence[str]
) -> str:
    shown = list_first([to_printable(name, 100) for name in names]) or "no column"
    if column is not None:
        if column in candidates:
            return column
        if column in names:
            raise CallError(
                f"its column {column!r} holds no images; columns of bytes: "
                f"{list_first(candidates) or 'none'}"
            )
        raise CallError(f"it has no column {column!r}, only {shown}{did_you_mean(column, names)}")
    known = [
        name
        for name in candidates
        if isinstance(features.get(name), dict) and features[name].get("_type") == "Image"
    ]
    found = known or candidates
    if len(found) > 1:
        listed = ", ".join(to_printable(repr(name), 100) for name in found[:MAX_COLUMNS])
        raise CallError(f"it has several columns of images: {listed}; name one with --column")
    if not found:
        raise CallError(f"no column of it holds images as bytes; it has {shown}")
    return found[0]


def _read_features(metadata: dict[bytes, bytes]) -> tuple[dict[str, Any], list[str]]:
    """Read what Hugging Face says of the columns; strangers may have written anything there."""
    text = metadata.get(b"huggingface")
    if text is None:
        return {}, []
    if len(text) > MAX_METADATA_BYTES:
        return {}, [f"its metadata of {len(text):,} bytes are ignored: too many"]
    try:
        features = json.loads(text.decode())["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        features = None
    if not isinstance(features, dict):
        return {}, ["its metadata say nothing of its columns; ignored"]
    return features, []


def _check_class_names(names: Any, kind: Any) -> list[str] | None:
    """Return the names of a column's numbers; None if they are not that."""
    if not (isinstance(names, list) and import_pyarrow().types.is_integer(kind)):
        return None
    if not all(isinstance(name, str) and 0 < len(name) <= MAX_TEXT_CHARS for name in names):
        return None
    if len(set(names)) < len(names) or any(not is_encodable(name) for name in names):
        return None
    return names


def is_encodable(text: str) -> bool:
    """Tell whether a text can be written to a file: a JSON document may hold half a character.

    Parameters
    ----------
    text : str

    Returns
    -------
    bool
    """
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def to_texts(
    array: Any, class_names: Sequence[str] | None = None, max_chars: int = MAX_TEXT_CHARS
) -> list[str]:
    """Convert a column to text; equal texts are one object.

    Parameters
    ----------
    array : pyarrow.Array
    class_names : sequence of str, optional
        Names of its numbers.
    max_chars : int
        Of a text.

    Returns
    -------
    list of str
        Empty where there is no value, or no name of a number.

    Raises
    ------
    ValueError
        If a text is too long, or is not UTF-8.
    """
    pa = import_pyarrow()
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    distinct = array.dictionary
    if _is_text(pa.types, distinct.type):
        # Bytes before characters: what is not UTF-8 has no length in characters.
        longest = pa.compute.max(pa.compute.binary_length(distinct)).as_py() or 0
        if longest > 4 * max_chars:
            raise ValueError(TOO_LONG)
    if class_names is not None:
        numbers = distinct.to_pylist()
        texts = [
            class_names[number] if number is not None and 0 <= number < len(class_names) else ""
            for number in numbers
        ]
    elif pa.types.is_floating(distinct.type):
        texts = ["" if text == "nan" else text for text in distinct.cast(pa.string()).to_pylist()]
    else:
        try:
            texts = distinct.cast(pa.string()).to_pylist()
        except UnicodeDecodeError as error:
            raise ValueError("its text is not UTF-8") from error
    texts = [text if text is not None and is_encodable(text) else "" for text in texts]
    if any(len(text) > max_chars for text in texts):
        raise ValueError(TOO_LONG)
    return ["" if index is None else texts[index] for index in array.indices.to_pylist()]
