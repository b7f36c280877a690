"""What the soak of backfills runs and reads: scorings as spark-submit starts them, tables that they fill."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_hydrogen.contract import jobs
from airflow_hydrogen.contract.jobs import InferenceJob, Run, Sink, Source
from airflow_hydrogen.runtime import __main__ as application
from tests.integration.daemons import spark_home
from tests.integration.databases import Database

ROOT = Path(__file__).resolve().parents[2]
ROWS = 500
CONNECTION = "warehouse"

# Prints what readers of a table find: partition -> ids, and partition -> files.
_READ = """
import json, sys
from pyspark.sql import SparkSession, functions as F
kind, name, path = sys.argv[1:]
spark = SparkSession.builder.getOrCreate()
frame = spark.table(name) if kind == "hive" else spark.read.format(kind).load(name)
rows, files = {}, {}
for row in frame.select("ds", "id", F.input_file_name().alias("file")).collect():
    rows.setdefault(row["ds"], []).append(row["id"])
    files.setdefault(row["ds"], set()).add(row["file"])
found = {ds: {"ids": sorted(rows[ds]), "files": sorted(files[ds])} for ds in rows}
open(path, "w").write(json.dumps(found))
"""


@dataclass
class Table:
    """A table that backfills fill, of one kind of sink.

    Attributes:
        kind: of the sink.
        folder: the table's.
        name: how readers call it; the folder where that is how.
        conf: Spark's settings for it.
        database: where it is, of a table of PostgreSQL.
    """

    kind: str
    folder: Path
    name: str
    conf: Mapping[str, str] = field(default_factory=dict)
    database: Database | None = None

    @property
    def access(self) -> dict[str, dict[str, str]]:
        """What opens the sink's connection."""
        return {CONNECTION: self.database.options} if self.database else {}

    def sink(self, day: str, work: Path) -> Sink:
        """One partition of it."""
        partition = {"ds": day}
        if self.kind == "jdbc":
            return Sink.jdbc(CONNECTION, table=self.name, partition=partition)
        if self.kind == "hive":
            return Sink.hive(self.name, partition=partition, work_uri=str(work / "work"))
        return Sink(kind=self.kind, uri=self.name, partition=partition)  # type: ignore[arg-type]

    def read(self, work: Path) -> dict[str, dict[str, Any]]:
        """Partition -> ids of its rows, and files that hold them with the hashes of their content.

        A database has the places of rows in the table's files, and the transactions that put them there.
        """
        if self.database:
            return self._read_database()
        (work / "read.py").write_text(_READ)
        found = work / "found.json"
        done = submit(self.conf, [str(work / "read.py"), self.kind, self.name, str(found)], work / "read.log")
        assert done.wait() == 0, (work / "read.log").read_text()
        document: dict[str, dict[str, Any]] = json.loads(found.read_text())
        for partition in document.values():
            paths = [local_file(name) for name in partition["files"]]
            partition["files"] = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
        return document

    def leftovers(self, read: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """What lies in the table and beside it and is neither read nor known to belong there."""
        if self.database:
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            return [name for (name,) in self.database.rows(tables) if name != self.name]
        parent = self.folder.parent
        found = [path.name for path in parent.iterdir() if path.name.startswith(f".{self.folder.name}.")]
        if self.kind == "delta":
            return found  # files of a commit that was never made are VACUUM's
        known = {name for partition in read.values() for name in partition["files"]}
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        named = [path for path in files if path.name not in ("_SUCCESS", "_hydrogen.json")]
        return found + [str(path) for path in named if str(path) not in known and path.suffix != ".crc"]

    def _read_database(self) -> dict[str, dict[str, Any]]:
        assert self.database is not None
        found: dict[str, dict[str, Any]] = {}
        query = f"SELECT ds, id, ctid::text, xmin::text, t::text FROM {self.name} t ORDER BY id"
        for ds, id_, *row in self.database.rows(query):
            partition = found.setdefault(ds, {"ids": [], "files": {}})
            partition["ids"].append(id_)
            partition["files"][row[0]] = row[1:]
        return found


def local_file(name: str) -> Path:
    """The path of a file as Spark names it."""
    return Path(unquote(urlsplit(name).path))


def submit(conf: Mapping[str, str], arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start an application in a process group of its own."""
    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.memory": "640m",
        "spark.sql.shuffle.partitions": "2",
        **conf,
    }
    command = [str(spark_home() / "bin" / "spark-submit"), "--master", "local[1]"]
    for name, value in settings.items():
        command += ["--conf", f"{name}={value}"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable}
    with log.open("ab") as output:
        return subprocess.Popen(
            [*command, *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


@dataclass
class Backfill:
    """The scoring of one day, with a folder of its own.

    Attributes:
        process: of the newest try; None before the first.
    """

    day: str
    folder: Path
    conf: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What its tries have written."""
        return self.folder / "log"

    @property
    def ids(self) -> list[int]:
        """Of the rows that it has to write."""
        first = ROWS * int(self.day.removeprefix("d"))
        return list(range(first, first + ROWS))

    @classmethod
    def prepare(cls, table: Table, model: str, day: str, folder: Path) -> Backfill:
        """Write its rows and its job."""
        backfill = cls(day, folder, table.conf)
        folder.mkdir(parents=True)
        ids = backfill.ids
        rows = {"id": ids, "a": [float(n) for n in ids], "b": [1.0] * ROWS}
        pq.write_table(pa.table(rows), folder / "rows.parquet")
        job = InferenceJob(
            model_uri=model,
            source=Source.parquet(str(folder / "rows.parquet")),
            sink=table.sink(day, folder),
            report_uri=str(folder / "report.json"),
            run=Run(dag_id="backfill", task_id="score", run_id=day),
            access=table.access,
        )
        (folder / "job.json").write_text(jobs.dumps(job))
        return backfill

    def start(self) -> None:
        """Begin a try."""
        self.process = submit(self.conf, [str(application.__file__), str(self.folder / "job.json")], self.log)

    def kill(self) -> bool:
        """kill -9 on the JVM and the driver; False where the try had ended by itself."""
        assert self.process is not None
        if self.process.poll() is not None:
            return False
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL
