"""The rows of parquet files, the format of datasets on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DataError


def parquet_rows(path: Path, fix: str, fields: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a file as JSON-like values.

    Args:
        fix: the advice where it cannot be used.
        fields: the columns to read, all of which are required; () for all there are.

    Raises:
        DataError: the file is damaged, or lacks a field.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is no readable parquet file: {reason}", fix) from None
    if missing := [name for name in fields if name not in table.column_names]:
        raise DataError(f"{path} has no field {' and no '.join(missing)}", fix)
    return (table.select(list(fields)) if fields else table).to_pylist()
