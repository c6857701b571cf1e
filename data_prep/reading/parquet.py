"""The `text` column of a parquet file, as bytes. Only such a file needs pyarrow."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpt1_ds.base.errors import DataError

if TYPE_CHECKING:
    from pyarrow import DataType

_MARK = b"PAR1"
"""Each file begins and ends with it."""
_MOST_ROWS = 64
_BATCH_BYTES = 32 << 20


def parquet_batches(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """(rows of the whole file, next rows). A null is an empty row. DataError without one such
    column of strings.

    The bytes need not be UTF-8. A row is read whole, so the memory is a few times the longest one.
    """
    import pyarrow
    from pyarrow import parquet

    options = {"buffer_size": 1 << 20, "page_checksum_verification": True}
    with parquet.ParquetFile(path, **options) as table:
        _refuse_joined(path)
        metadata, schema = table.metadata, table.schema_arrow
        columns = schema.names.count("text")
        if columns > 1:
            raise DataError(f"{path}: has {columns} columns 'text'; rename all but one")
        kind = str(schema.field("text").type) if columns else "missing"
        if not columns or not _is_string(schema.field("text").type):
            raise DataError(f"{path}: its column 'text' is {kind}, but must hold strings")
        groups = range(metadata.num_row_groups)
        size = sum(metadata.row_group(group).total_byte_size for group in groups)
        mean = size // max(1, metadata.num_rows)
        rows = max(1, min(_MOST_ROWS, _BATCH_BYTES // max(1, mean)))
        for batch in table.iter_batches(batch_size=rows, columns=["text"]):
            column = batch.column(0)
            if pyarrow.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            # Not as strings: pyarrow refuses a whole batch for one byte that is not UTF-8.
            found = column.cast(pyarrow.large_binary()).to_pylist()
            yield metadata.num_rows, [data or b"" for data in found]


def _refuse_joined(path: Path) -> None:
    """The last one's table of contents alone would be read, and it would lead to wrong bytes."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(_MARK + _MARK) >= 0:
            raise DataError(f"{path}: is several parquet files joined to one; give them apart")


def _is_string(kind: "DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_string(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
