"""Spark's types as Arrow's."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql.types import DataType


def arrow_type(type_: DataType) -> pa.DataType:
    """A type of Spark's in Arrow, with timestamps in UTC, as they stand in files."""
    from pyspark.sql.pandas.types import to_arrow_type

    # Spark 4.2 wants to be told; before, UTC is what it takes.
    convert: Any = to_arrow_type
    if "timezone" in inspect.signature(convert).parameters:
        return convert(type_, timezone="UTC")
    return convert(type_)
