"""Tables that change while they are read or written: one clear error, and what was there stays."""

from __future__ import annotations

import contextlib
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.errors import DatasetChangedError, SourceError
from airflow_hydrogen.contract.jobs import InferenceJob, Run, Sink, Source
from airflow_hydrogen.runtime import __main__ as runtime
from airflow_hydrogen.runtime.data import recipes, sources, staging
from airflow_hydrogen.runtime.scoring import application, sinks
from airflow_hydrogen.runtime.sinks import hive as hive_sink
from tests.integration.models import publish_plain

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

DAY = {"ds": "2013-01-01"}


def kept(spark, rows):
    """A `prepare` that leaves the rows as they are; Spark has to read them."""
    return rows.where("id >= 0")


PREPARE = {"prepare": "tests.integration.test_meanwhile:kept"}


def write(path, rows):
    numbers = [float(n) for n in range(rows)]
    pq.write_table(pa.table({"id": range(rows), "a": numbers, "b": [1.0] * rows}), path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return publish_plain(tmp_path_factory.mktemp("models"))


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder / "x.parquet", rows=10)
    return folder


@pytest.fixture
def score(warehouse, model, tmp_path, monkeypatch):
    """Carry a job out as spark-submit's driver does, with something that happens meanwhile."""
    monkeypatch.setattr(application, "scoring_session", lambda *_: warehouse)

    def scored(source, happens, when="before it is read", sink=None, access=None, **given):
        place, placing = sinks.place, sinks.placing

        def placed(*arguments):
            happens()
            return place(*arguments)

        @contextlib.contextmanager
        def staged(*arguments):
            with placing(*arguments) as rows:
                commit = rows.commit

                def late(**named):
                    happens()
                    commit(**named)

                rows.commit = late
                yield rows

        job = InferenceJob(
            model_uri=model,
            source=source,
            sink=sink or Sink.parquet(str(tmp_path / "scores")),
            report_uri=str(tmp_path / "report.json"),
            run=Run(dag_id="d", task_id="t", run_id="r"),
            access=access or {},
            **given,
        )
        with monkeypatch.context() as patched:
            if when == "before it is read":
                patched.setattr(application.sinks, "place", placed)
            else:
                patched.setattr(sinks, "placing", staged)
            report = runtime.run(job)
        if report.failure is not None:
            assert "\n" not in report.failure.message, "Java's stack is left to the log"
            assert not list((tmp_path / "scores").glob("*.parquet")), "nothing is half-written"
        return report

    return scored


def remove_files(folder):
    for path in folder.iterdir():
        path.unlink()


def replace_files(folder):
    """As an INSERT OVERWRITE of Hive's, whose files are called as those before."""
    names = [path for path in folder.iterdir() if not path.name.startswith(".")]
    remove_files(folder)
    for path in names:
        write(path, rows=7)


@pytest.fixture
def hive(warehouse, metastore, files):
    """The rows in a table of the metastore, and its folder."""
    warehouse.sql("create database if not exists meanwhile")
    warehouse.read.parquet(str(files)).createOrReplaceTempView("meanwhile_rows")
    warehouse.sql("create table meanwhile.h stored as parquet as select * from meanwhile_rows")
    yield metastore.folder / "meanwhile.db" / "h"
    warehouse.sql("drop table if exists meanwhile.h")


# --- Sources ---------------------------------------------------------------------------------------------


def test_files_that_are_gone_are_told_whoever_reads_them(score, files, hive):
    report = score(Source.parquet(str(files)), lambda: remove_files(files), **PREPARE)
    assert report.failure.error_type == "SourceError" and report.failure.retryable
    said = r"source parquet '.*' cannot be read: .*x.parquet. File does not exist.*lists the files anew"
    assert re.fullmatch(said, report.failure.message)

    report = score(Source.hive("meanwhile.h"), lambda: remove_files(hive))
    assert report.failure.error_type == "SourceError"
    assert re.match("source hive meanwhile.h cannot be read: .*does not exist", report.failure.message)


def test_files_of_a_delta_version_that_are_gone_need_another_version(score, warehouse, files, tmp_path):
    table = tmp_path / "table"
    warehouse.read.parquet(str(files)).write.format("delta").save(str(table))
    vacuumed = list(table.glob("*.parquet"))
    report = score(Source.delta(str(table)), lambda: [path.unlink() for path in vacuumed], **PREPARE)
    assert report.failure.error_type == "SourceError"
    assert "at version 0 cannot be read" in report.failure.message
    assert report.failure.message.endswith(". Clear the task, which reads the newest version")


def test_files_that_were_written_anew_are_no_rows_of_the_same_table(score, files, hive):
    for source, folder in ((Source.parquet(str(files)), files), (Source.hive("meanwhile.h"), hive)):
        report = score(source, lambda folder=folder: replace_files(folder), **PREPARE)
        assert (report.failure.error_type, report.failure.retryable) == ("DatasetChangedError", True)
        assert re.search("changed after the files were listed: it was written anew", report.failure.message)


def test_files_that_come_while_others_are_read_change_nothing(score, files, tmp_path):
    report = score(Source.parquet(str(files)), lambda: write(files / "y.parquet", rows=5), **PREPARE)
    assert (report.failure, report.rows) == (None, 10)


def test_files_of_partitions_that_nobody_asks_for_may_be_written_anew(score, tmp_path):
    parts = tmp_path / "parts"
    for day in ("1", "2"):
        (parts / f"day={day}").mkdir(parents=True)
        write(parts / f"day={day}" / "x.parquet", rows=10)
    source = Source.parquet(str(parts), where="DAY = 1 and id >= 0")
    report = score(source, lambda: replace_files(parts / "day=1"), **PREPARE)
    assert report.failure.error_type == "DatasetChangedError"
    report = score(source, lambda: replace_files(parts / "day=2"), **PREPARE)
    assert (report.failure, report.rows) == (None, 7)


def test_files_that_cannot_be_listed_again_may_have_changed(warehouse, files, monkeypatch):
    frame, by_path = sources.read(warehouse, Source.parquet(str(files))), recipes._by_path
    assert frame.count() == 10
    looks = iter([lambda *given: by_path(*given), lambda *_: warehouse._jvm.java.lang.Integer.parseInt("x")])
    with monkeypatch.context() as patched:
        patched.setattr(recipes, "_by_path", lambda *given: next(looks)(*given))
        with pytest.raises(SourceError, match="changed meanwhile is not known: .*For input string"):
            recipes.require_same_files(frame, "files")
    shutil.rmtree(files)
    recipes.require_same_files(frame, "files")


def test_a_training_tells_the_same(warehouse, files, tmp_path, monkeypatch):
    source, written = Source.parquet(str(files), where="id % 2 >= 0"), staging._write

    def stage(happens):
        def late(*given):
            happens(files)
            return written(*given)

        monkeypatch.setattr(staging, "_write", late)
        return staging.stage(warehouse, "train", source, str(tmp_path / "data"), ranks=1)

    with pytest.raises(DatasetChangedError, match="it was written anew"):
        stage(replace_files)
    with pytest.raises(SourceError, match="cannot be read: .*File does not exist.* Run the task again"):
        stage(remove_files)


@pytest.mark.parametrize("server", ["postgres", "mariadb"])
def test_a_database_whose_table_changes_says_it_in_its_own_words(score, request, server, tmp_path):
    database = request.getfixturevalue(server).database()
    database.execute(
        "create table t (id int, a double precision, b double precision)", "insert into t values (1, 1, 1)"
    )
    access = {"shop": database.options}
    source = Source.jdbc("shop", table="t")

    def dropped(name):
        return lambda: database.execute(f"alter table t drop column {name}")

    report = score(source, dropped("a"), access=access)
    assert report.failure.error_type == "SourceError"
    said = {"postgres": 'ERROR: column "a" does not exist', "mariadb": r"\(conn=\d+\) Unknown column 'a'.*"}
    assert re.fullmatch(f"source jdbc shop: t cannot be read: {said[server]}", report.failure.message)

    database.execute("alter table t add column a double precision")
    into = Sink.jdbc("shop", table="scores", partition=DAY)
    report = score(source, dropped("b"), sink=into, access=access)
    assert report.failure.error_type == "SourceError", "it is not the sink that the database refuses"
    schema = "current_schema()" if server == "postgres" else "database()"
    tables = f"select table_name from information_schema.tables where table_schema = {schema}"
    assert database.rows(tables) == [("t",)]


# --- Sinks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["postgres", "mariadb"])
def test_a_sink_that_changes_before_the_commit_keeps_what_it_holds(score, request, server, files):
    database = request.getfixturevalue(server).database()
    given = {
        "source": Source.parquet(str(files)),
        "sink": Sink.jdbc("shop", table="scores", partition=DAY),
        "access": {"shop": database.options},
        "when": "before the commit",
    }
    assert score(happens=lambda: None, **given).rows == 10
    report = score(happens=lambda: database.execute("alter table scores drop column prediction"), **given)
    assert report.failure.error_type == "TableMismatchError"
    assert "it has no column 'prediction'" in report.failure.message
    assert database.rows("select count(*) from scores") == [(10,)]
    database.execute("drop table scores")
    assert score(happens=lambda: None, **given).rows == 10
    report = score(happens=lambda: database.execute("drop table scores"), **given)
    assert (report.failure, database.rows("select count(*) from scores")) == (None, [(10,)])


def test_a_hive_table_that_is_dropped_while_rows_are_brought_in_is_told(
    score, warehouse, metastore, files, hive, monkeypatch
):
    point = hive_sink.Table.point

    def dropped(*given):
        warehouse.sql("drop table meanwhile.s")
        point(*given)

    given = {"source": Source.parquet(str(files)), "sink": Sink.hive("meanwhile.s", partition=DAY)}
    with monkeypatch.context() as patched:
        patched.setattr(hive_sink.Table, "point", dropped)
        report = score(happens=lambda: None, **given)
    assert (report.failure.error_type, report.failure.retryable) == ("MetastoreRefusedError", True)
    assert re.search("hive meanwhile.s .*: the metastore refuses.*cannot be found", report.failure.message)
    folder = metastore.folder / "meanwhile.db" / "s"
    assert not [path for path in folder.rglob("*") if path.is_file()], "nothing is half-written"
    assert score(happens=lambda: None, **given).rows == 10
    warehouse.sql("drop table meanwhile.s")
