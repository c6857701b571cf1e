"""The `text` column of a parquet file, as bytes. Only such a file needs pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpt1_ds.base.errors import DataError

if TYPE_CHECKING:
    from pyarrow import DataType

_MOST_ROWS = 64
_BATCH_BYTES = 32 << 20


def parquet_batches(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """(rows of the whole file, next rows). A null is an empty row. DataError without one such
    column of strings.

    The bytes need not be UTF-8. A row is read whole, so the memory is a few times the longest one.
    """
    import pyarrow
    from pyarrow import parquet

    with parquet.ParquetFile(path, buffer_size=1 << 20) as table:
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


def _is_string(kind: "DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_string(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
