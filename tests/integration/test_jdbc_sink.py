"""Tables of PostgreSQL and MariaDB as sinks: a partition exactly once."""

from __future__ import annotations

import contextlib
import socket
import threading
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.errors import (
    ColumnTypeError,
    DatabaseRefusedError,
    InvalidJobError,
    MergeKeysError,
    MissingColumnError,
    NullValueError,
    OtherRowsError,
    PartitionTakenError,
    RowsLostError,
    TableMismatchError,
    UnwritableUriError,
)
from airflow_hydrogen.contract.jobs import InferenceJob, Run, Sink, Source
from airflow_hydrogen.runtime.scoring import sinks
from airflow_hydrogen.runtime.scoring.application import run_inference
from airflow_hydrogen.runtime.sinks import connections, placements
from tests.integration import servers
from tests.integration.databases import PASSWORD
from tests.integration.models import dense, matrix_layout, publish
from tests.integration.table_writer import Writer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("spark")]

DAY = {"ds": "2013-01-01"}


@pytest.fixture(params=["postgres", "mariadb"])
def database(request):
    return request.getfixturevalue(request.param).database()


@pytest.fixture
def put(spark):
    """Write rows as a scoring does: staged, counted, committed."""

    def write(database, sink, frame, run=None):
        access = {"shop": database.options}
        placements.require_writable(sink, access)
        with placements.placing(spark, sink.for_run(run), run, access) as place:
            rows, _ = place.stage(frame, None)
            place.require_owner()
            assert place.count() == rows
            place.commit(rows=rows, model=None)
        return rows

    return write


def scores(partition=None, **given):
    return Sink.jdbc("shop", table="scores", partition=DAY if partition is None else partition, **given)


def run(run_id):
    return Run(dag_id="d", task_id="t", run_id=run_id, map_index=-1)


def numbers(spark, first, last, factor=1.0, tasks=3):
    return spark.range(first, last, 1, tasks).selectExpr("id", f"id * double({factor}) AS p")


def tables(database):
    schema = "current_schema()" if database.scheme == "postgresql" else "database()"
    query = f"SELECT table_name FROM information_schema.tables WHERE table_schema = {schema}"
    return sorted(name for [name] in database.rows(query))


def found(database, where="1 = 1"):
    return sorted(database.rows(f"SELECT id, p, ds FROM scores WHERE {where}"))


def rows(first, last, factor=1.0, day=DAY["ds"]):
    return [(number, number * factor, day) for number in range(first, last)]


# --- through a whole scoring -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """prediction = a + 10 b."""
    uri = str(tmp_path_factory.mktemp("models") / "linear")
    return publish(dense([[1.0], [10.0]]), uri, matrix_layout("a", "b"))


@pytest.fixture
def score(linear, tmp_path):
    def scored(database, a, **changes):
        source = tmp_path / "rows.parquet"
        pq.write_table(pa.table({"a": a, "b": np.arange(len(a))}), source)
        given = {
            "model_uri": linear,
            "source": Source.parquet(str(source)),
            "sink": scores(),
            "report_uri": str(tmp_path / "report.json"),
            "batch_rows": 16,
            "access": {"shop": database.options},
        }
        return run_inference(InferenceJob(**{**given, **changes}))

    return scored


def test_scores_are_the_rows_of_their_partition(score, database, tmp_path):
    report = score(
        database,
        [*np.arange(49.0), None],
        on_bad_row="quarantine",
        quarantine=Sink.parquet(str(tmp_path / "bad")),
    )
    assert report.output_uri == "scores"
    assert (report.rows, report.rows_in, report.rows_quarantined) == (49, 50, 1)
    assert sorted(database.rows("SELECT a, b, prediction, ds FROM scores")) == [
        (float(n), n, 11.0 * n, "2013-01-01") for n in range(49)
    ]
    assert tables(database) == ["scores"]


def test_a_scoring_that_fails_leaves_the_old_rows(score, postgres):
    database = postgres.database()
    database.execute(
        "CREATE TABLE scores (a double precision, b bigint, prediction real, ds text)",
        "INSERT INTO scores VALUES (5, 6, 7, '2013-01-01')",
    )
    with pytest.raises(NullValueError):
        score(database, [1.0, None])
    assert database.rows("SELECT a, b, prediction FROM scores") == [(5.0, 6, 7.0)]
    assert tables(database) == ["scores"]


# --- replaced, appended, merged ---------------------------------------------------------------------------


def test_a_partition_is_replaced_and_the_others_are_left_alone(spark, database, put):
    other = scores({"ds": "2013-01-02"})
    put(database, scores(), numbers(spark, 0, 100))
    put(database, other, numbers(spark, 0, 7))
    put(database, scores(), numbers(spark, 50, 60, 2.0))
    assert found(database) == sorted([*rows(50, 60, 2.0), *rows(0, 7, day="2013-01-02")])
    put(database, scores(), numbers(spark, 0, 0))
    assert found(database) == rows(0, 7, day="2013-01-02"), "by no rows, too"
    put(database, scores({"ds": "2013-01-02 "}), numbers(spark, 0, 1))
    put(database, scores({"ds": "a"}), numbers(spark, 1, 2))
    put(database, scores({"ds": "A"}), numbers(spark, 2, 3))
    assert len(found(database)) == 7 + 3, "values are compared as they are written"
    assert tables(database) == ["scores"]


def test_a_whole_table_is_replaced_without_partition(spark, database, put):
    database.execute("CREATE TABLE scores (id bigint, p double precision, ds varchar(9) DEFAULT 'x')")
    database.execute("INSERT INTO scores (id, p) VALUES (-1, -1)")
    put(database, scores({}), numbers(spark, 0, 3))
    assert found(database) == rows(0, 3, day="x")


def test_a_partition_has_the_types_of_the_table(spark, database, put):
    database.execute("CREATE TABLE scores (id int, p real, ds date, hour int)")
    for hour in ("05", "5", "6"):
        put(database, scores({**DAY, "hour": hour}), numbers(spark, 0, 2))
    hours = database.rows("SELECT hour, count(*) FROM scores WHERE ds = '2013-01-01' GROUP BY hour")
    assert sorted(hours) == [(5, 2), (6, 2)]
    with pytest.raises(TableMismatchError, match="cannot be compared with ds='2013-01-01', hour='noon'"):
        put(database, scores({**DAY, "hour": "noon"}), numbers(spark, 0, 2))


def test_a_value_of_the_partition_is_one_for_spark_too(spark, postgres, put):
    database = postgres.database()
    database.execute("CREATE TABLE scores (id bigint, p double precision, ds date, flag boolean)")
    with pytest.raises(TableMismatchError, match="'20130101' is not written as '2013-01-01'"):
        put(database, scores({"ds": "20130101"}), numbers(spark, 0, 2))
    with pytest.raises(ColumnTypeError, match="column 'flag': expected boolean, found 'on'"):
        put(database, scores({**DAY, "flag": "on"}), numbers(spark, 0, 2))
    assert tables(database) == ["scores"]


def test_rows_that_are_appended_are_replaced_by_their_own_run_alone(spark, database, put):
    sink = scores(mode="append")
    put(database, sink, numbers(spark, 0, 3), run("first"))
    put(database, sink, numbers(spark, 10, 12), run("second"))
    put(database, sink, numbers(spark, 0, 2), run("first"))
    assert found(database) == [*rows(0, 2), *rows(10, 12)]
    assert len(database.rows("SELECT DISTINCT hydrogen_run FROM scores")) == 2
    with pytest.raises(InvalidJobError, match="needs a run"):
        put(database, sink, numbers(spark, 0, 3))


def test_rows_take_the_place_of_those_with_the_same_keys(spark, database, put):
    sink = scores(mode="merge", keys=["id", "word"])
    frame = numbers(spark, 0, 4).selectExpr("id", "p", "concat('w', id) AS word")
    put(database, sink, frame, run("first"))
    more = numbers(spark, 2, 6, 10.0).selectExpr("id", "p", "concat('w', id) AS word")
    put(database, sink, more, run("second"))
    put(database, sink, more, run("second"))
    assert found(database) == [*rows(0, 2), *rows(2, 6, 10.0)]
    assert tables(database) == ["scores"]


def test_what_is_not_written_stays_where_rows_are_merged(spark, database, put):
    other = " COLLATE utf8mb4_unicode_ci" if database.scheme == "mysql" else ""
    database.execute(
        f"CREATE TABLE scores (word varchar(20){other} PRIMARY KEY, p double precision, note text)",
        "INSERT INTO scores VALUES ('w1', -1, 'mine'), ('w9', -1, 'too')",
    )
    frame = numbers(spark, 1, 3).selectExpr("p", "concat('w', id) AS word")
    put(database, scores({}, mode="merge", keys=["word"]), frame)
    merged = [("w1", 1.0, "mine"), ("w2", 2.0, None), ("w9", -1.0, "too")]
    assert sorted(database.rows("SELECT word, p, note FROM scores")) == merged


def test_keys_that_do_not_tell_rows_apart_change_nothing(spark, database, put):
    put(database, scores(), numbers(spark, 0, 3))
    sink = scores(mode="merge", keys=["id"])
    twice = numbers(spark, 0, 3).unionAll(numbers(spark, 2, 4, 9.0)).selectExpr("nullif(id, 1) AS id", "p")
    with pytest.raises(MergeKeysError, match="1 rows have a key that is null, and 1 keys stand more than"):
        put(database, sink, twice)
    with pytest.raises(MissingColumnError, match="key 'word' not found"):
        put(database, Sink.jdbc("shop", table="new", mode="merge", keys=["word"]), twice)
    assert found(database) == rows(0, 3)
    assert tables(database) == ["scores"]


def test_keys_are_told_apart_as_the_table_tells_them(spark, mariadb, put):
    database = mariadb.database()
    sink = scores({}, mode="merge", keys=["word"])
    frame = numbers(spark, 0, 2).selectExpr("if(id = 0, 'aB', 'Ab') AS word", "p")
    with pytest.raises(MergeKeysError, match="1 keys stand more than once"):
        put(database, sink, frame)  # the new table would take them for one
    database.execute("CREATE TABLE scores (word varchar(9) COLLATE utf8mb4_bin PRIMARY KEY, p double)")
    for factor in (1.0, 2.0):
        put(database, sink, frame.selectExpr("word", f"p * double({factor}) AS p"))
    assert sorted(database.rows("SELECT word, p FROM scores")) == [("Ab", 2.0), ("aB", 0.0)]


# --- columns ----------------------------------------------------------------------------------------------

EVERY_TYPE = {
    "float64": "double(id) / 3",
    "float32": "float(id) / 3",
    "int64": "id - 5000000000",
    "int32": "int(id)",
    "int16": "smallint(id)",
    "int8": "tinyint(-id)",
    "flag": "id % 2 = 0",
    "text": "concat('wörd 😀 ', id)",
    "day": "date'2013-01-01'",
    "instant": "timestamp'2043-01-01 01:02:03.456789'",
    "local": "timestamp_ntz'2013-01-01 01:02:03.456789'",
    "number": "decimal(id) / 8",
    "nothing": "int(NULL)",
}


@pytest.mark.parametrize("reserved", [False, True])
def test_values_come_back_as_they_were(spark, database, put, reserved):
    more = ' "order"?' if reserved else ""
    select = [f"{sql} AS `{name}{more}`" for name, sql in EVERY_TYPE.items()]
    frame = spark.range(0, 9, 1, 2).selectExpr(*select)
    put(database, Sink.jdbc("shop", table="scores"), frame)
    put(database, Sink.jdbc("shop", table="scores"), frame)
    reader = spark.read.format("jdbc").options(**database.options, dbtable="scores")
    there = reader.option("preferTimestampNTZ", "false").load()
    back = there.selectExpr(*(f"CAST(`{name}` AS {type_})" for name, type_ in frame.dtypes))
    assert sorted(map(tuple, back.collect())) == sorted(map(tuple, frame.collect()))


def test_lists_are_arrays_where_the_database_has_them(spark, postgres, mariadb, put):
    frame = spark.range(0, 2).selectExpr("id", "array(float(id), float(0.5)) AS p")
    there = postgres.database()
    for _ in range(2):
        put(there, Sink.jdbc("shop", table="scores"), frame)
    assert sorted(there.rows("SELECT id, p FROM scores")) == [(0, [0.0, 0.5]), (1, [1.0, 0.5])]
    with pytest.raises(
        ColumnTypeError, match="'p': expected a type that the database has too, found array<float>"
    ):
        put(mariadb.database(), Sink.jdbc("shop", table="scores"), frame)


def test_names_are_found_as_the_database_spells_them(spark, database, put):
    mysql = database.scheme == "mysql"
    if not mysql:
        database.execute("CREATE SCHEMA shop")
    schema = database.name if mysql else "shop"
    name = f'{schema}."The.Scores"'
    sink = Sink.jdbc("shop", table=name, partition={"Day": "1"})
    put(database, sink, numbers(spark, 0, 2))
    put(database, sink, numbers(spark, 0, 3).selectExpr("id AS ID", "p"))
    quoted = name.replace('"', "`") if mysql else name
    assert sorted(database.rows(f"SELECT id FROM {quoted}")) == [(0,), (1,), (2,)]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ("id bigint, ds text", "it has no column 'p'"),
        ("id bigint, p int, ds text", "column 'p' is INT.*, which does not hold double"),
        ("id date, p double precision, ds text", "column 'id' is date, which does not hold bigint"),
        (
            "id bigint, p double precision, ds text, price int NOT NULL",
            "column 'price' must not be null, has no default, and is not written",
        ),
        ("id bigint, p double precision", "it has no column 'ds'"),
    ],
)
def test_a_table_that_does_not_fit_is_found_before_anything_is_computed(
    spark, database, put, columns, problem
):
    database.execute(f"CREATE TABLE scores ({columns})")
    computed = spark.sparkContext.accumulator(0)

    def fail(batches):
        computed.add(1)
        yield from batches

    frame = numbers(spark, 0, 3).mapInArrow(fail, "id long, p double")
    with pytest.raises(TableMismatchError, match=f"(?i){problem}"):
        put(database, scores(), frame)
    assert computed.value == 0
    assert tables(database) == ["scores"]


def test_a_column_that_spark_would_take_for_one_of_the_partition(spark, postgres, put):
    database = postgres.database()
    with pytest.raises(InvalidJobError, match="column 'DS' .* column 'ds' .* differ in capitals alone"):
        put(database, scores(), numbers(spark, 0, 3).selectExpr("id", "p", "'other' AS DS"))
    assert tables(database) == []


def test_the_database_has_the_last_word_before_anything_is_computed(spark, postgres, put):
    database = postgres.database()
    database.execute("CREATE TABLE scores (id bigint, p double precision, ds uuid)")
    with pytest.raises(TableMismatchError, match="cannot be compared with ds='2013-01-01'"):
        put(database, scores(), numbers(spark, 0, 3))
    database.execute("ALTER TABLE scores DROP ds, ADD ds text GENERATED ALWAYS AS ('x') STORED")
    with pytest.raises(TableMismatchError, match="(?i)cannot insert a non-DEFAULT value into column"):
        put(database, scores(), numbers(spark, 0, 3))


def test_what_cannot_be_opened_is_said_without_the_password(database):
    def problem(error, table="scores", **options):
        access = {"shop": {**database.options, **options}}
        with pytest.raises(error) as raised:
            placements.require_writable(Sink.jdbc("shop", table=table), access)
        assert PASSWORD not in str(raised.value) and "hunter2" not in str(raised.value)
        return str(raised.value)

    assert "authentication failed" in problem(
        UnwritableUriError, password="hunter2"
    ) or "Access denied" in problem(UnwritableUriError, password="hunter2")
    gone = database.jdbc_url.replace(str(database.port), "1")
    assert "cannot be written" in problem(UnwritableUriError, url=f"{gone}?password=hunter2")
    assert "no jar has the class org.example" in problem(UnwritableUriError, driver="org.example.Driver")
    assert "jdbc:mysql" in problem(InvalidJobError, url="jdbc:mariadb://h/d?password=hunter2")
    assert "must be a name such as" in problem(InvalidJobError, table="a..b")
    with pytest.raises(InvalidJobError, match=r"sink jdbc shop: scores needs access\['shop'\]"):
        placements.require_writable(Sink.jdbc("shop", table="scores"), {})


# --- failures ---------------------------------------------------------------------------------------------


def test_a_failure_while_rows_are_staged_leaves_the_old_ones(spark, database, put):
    put(database, scores(), numbers(spark, 0, 3))
    with pytest.raises(Exception, match="DIVIDE_BY_ZERO"):
        put(database, scores(), numbers(spark, 0, 9).selectExpr("id", "1 / (id - 8) AS p"))
    long = spark.range(1).selectExpr("id", "double(id) AS p", "repeat('x', 300) AS word")
    with pytest.raises(DatabaseRefusedError, match="too long") as refused:
        put(database, Sink.jdbc("shop", table="words", mode="merge", keys=["word"]), long)
    assert not refused.value.retryable
    assert found(database) == rows(0, 3)
    assert not [name for name in tables(database) if name.startswith("hydrogen")]


def test_a_failure_while_rows_are_put_in_place_leaves_the_old_ones(spark, database, put):
    put(database, scores(), numbers(spark, 0, 3))
    database.execute("ALTER TABLE scores ADD CONSTRAINT small CHECK (p < 5)")
    with pytest.raises(DatabaseRefusedError, match="small") as refused:
        put(database, scores(), numbers(spark, 0, 9))
    assert not refused.value.retryable and PASSWORD not in str(refused.value)
    assert found(database) == rows(0, 3)
    assert tables(database) == ["scores"]


def test_rows_that_the_database_drops_are_missed(spark, postgres, put):
    database = postgres.database()
    put(database, scores(), numbers(spark, 0, 3))
    database.execute(
        "CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER t BEFORE INSERT ON scores FOR EACH ROW WHEN (NEW.id = 5) EXECUTE FUNCTION drop_it()",
    )
    with pytest.raises(OtherRowsError, match="would hold 8 rows in place of the 9"):
        put(database, scores(), numbers(spark, 0, 9))
    assert found(database) == rows(0, 3)


def test_a_staged_row_that_goes_missing_stops_the_swap(spark, postgres, linear, tmp_path):
    database = postgres.database()
    job = InferenceJob(
        model_uri=linear,
        source=Source.parquet(str(tmp_path)),
        sink=scores(),
        report_uri=str(tmp_path / "report.json"),
        access={"shop": database.options},
    )
    with placements.placing(spark, job.sink, None, job.access) as place:
        staged, _ = place.stage(numbers(spark, 0, 9), None)
        [name] = tables(database)
        database.execute(f"DELETE FROM {name} WHERE id = 4")
        with pytest.raises(RowsLostError, match="wrote 9 rows .* finds 8"):
            sinks._require_all(place.name, staged, place.count())
    assert tables(database) == []


def test_the_newest_try_of_a_partition_wins(spark, database, put):
    access = {"shop": database.options}
    with (
        placements.placing(spark, scores({"ds": "other"}), None, access) as other,
        placements.placing(spark, scores(), None, access) as older,
    ):
        other.stage(numbers(spark, 5, 6), None)
        older.stage(numbers(spark, 0, 3), None)
        with placements.placing(spark, scores(), None, access) as newer:
            newer.stage(numbers(spark, 7, 9), None)
            with pytest.raises(PartitionTakenError, match="taken by another try"):
                older.commit(rows=3, model=None)
            newer.commit(rows=2, model=None)
            other.commit(rows=1, model=None)
        with pytest.raises(PartitionTakenError, match="taken by a try that has finished"):
            older.require_owner()
    assert found(database) == sorted([*rows(7, 9), *rows(5, 6, day="other")])
    assert tables(database) == ["scores"]


def test_the_newest_try_wins_while_tasks_of_an_older_one_still_write(spark, database, put, monkeypatch):
    monkeypatch.setattr(connections, "_SWEEP_TIMEOUT_S", 1)
    with placements.placing(spark, scores(), None, {"shop": database.options}) as older:
        older.stage(numbers(spark, 0, 3), None)
        [its] = tables(database)
        with contextlib.closing(database.connect()) as task, task.cursor() as cursor:
            cursor.execute(f"INSERT INTO {its} (id, p) VALUES (9, 9)")
            put(database, scores(), numbers(spark, 7, 9))
        with pytest.raises(PartitionTakenError, match="another try, whose staging table is"):
            older.commit(rows=3, model=None)
    assert found(database) == rows(7, 9)
    [left, _] = tables(database)
    assert left > its and database.rows(f"SELECT count(*) FROM {left}") == [(0,)]
    put(database, scores(), numbers(spark, 0, 2))
    assert tables(database) == ["scores"]


def test_a_try_says_who_has_taken_its_rows_wherever_it_finds_them_gone(spark, postgres):
    database = postgres.database()
    sink = scores(mode="merge", keys=["id"])
    with placements.placing(spark, sink, None, {"shop": database.options}) as place:
        place.stage(numbers(spark, 0, 3), None)
        database.execute(f"DROP TABLE {tables(database)[0]}")
        with pytest.raises(PartitionTakenError):
            place.count()
        write = place._write

        def lose(frame):
            write(frame)
            database.execute(f"DROP TABLE {place._place.name}")

        place._write = lose
        for notes in (None, "p"):
            with pytest.raises(PartitionTakenError):
                place.stage(numbers(spark, 0, 3), notes)


def test_tries_that_commit_at_once_leave_the_rows_of_the_newest_and_readers_see_whole_partitions(
    spark, database, put
):
    put(database, scores(), numbers(spark, 0, 20, 1.0))
    access = {"shop": database.options}
    seen, stop = [], threading.Event()

    def read():
        with contextlib.closing(database.connect()) as connection:
            connection.autocommit = True if database.scheme == "postgresql" else connection.autocommit
            while not stop.is_set():
                with connection.cursor() as cursor:
                    cursor.execute("SELECT count(*), count(DISTINCT ds), min(id), max(id) FROM scores")
                    seen.append(cursor.fetchone())
                connection.commit()

    def commit(place, failures):
        try:
            place.commit(rows=20, model=None)
        except Exception as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    failures = []
    try:
        with contextlib.ExitStack() as tries:
            places = []
            for number in range(4):
                # As tries that begin at the same moment: none of them has seen the others' tables.
                place = tries.enter_context(placements.placing(spark, scores(), None, access))
                place._drop_older = lambda _connection, _older: True
                place.stage(numbers(spark, 20 * number, 20 * number + 20, tasks=1), None)
                places.append(place)
            threads = [threading.Thread(target=commit, args=(place, failures)) for place in places]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        stop.set()
        reader.join()
    assert [type(failure) for failure in failures] == [PartitionTakenError] * 3
    assert found(database) == rows(60, 80)
    assert len(seen) > 5 and {(count, days) for count, days, _, _ in seen} == {(20, 1)}
    assert all(highest - lowest == 19 for _, _, lowest, highest in seen)
    assert tables(database) == ["scores"]


class LosesAnAnswer:
    """Stands before a server, and cuts the first connection whose commit the server has carried out."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server((servers.HOST, 0))
        self.port = self._listener.getsockname()[1]
        self.lost = 0
        self._lock = threading.Lock()
        self._sockets = [self._listener]
        self._threads = []
        self._start(self._serve)

    def _start(self, work, *given):
        self._threads.append(threading.Thread(target=work, args=given, daemon=True))
        self._threads[-1].start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((servers.HOST, self._port))
                self._sockets += [client, server]
                asked = threading.Event()
                self._start(self._pass_on, client, server, asked, True)
                self._start(self._pass_on, server, client, asked, False)

    def _pass_on(self, source, sink, asked, is_client):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_client and b"COMMIT\0" in data:  # and not READ COMMITTED
                    with self._lock:
                        if not self.lost:
                            self.lost = 1
                            asked.set()
                if not is_client and asked.is_set():
                    break
                sink.sendall(data)
        self._end(sink, source)

    def _end(self, *sockets):
        for end in sockets:  # to close them would not wake up who waits for them
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._end(self._listener)
        self._threads[0].join()
        self._end(*self._sockets)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()


def test_a_task_that_wrote_twice_and_a_driver_killed_in_mid_commit(
    spark, postgres, put, tmp_path, eventually
):
    database = postgres.database()
    put(database, scores(), numbers(spark, 0, 3))
    between = LosesAnAnswer(database.port)
    url = database.jdbc_url.replace(str(database.port), str(between.port))
    writer = Writer(
        {**database.options, "url": url}, scores().to_dict(), 1000, "local[2,3]", tmp_path / "writer.log"
    )
    try:
        with contextlib.closing(database.connect()) as holder, holder.cursor() as cursor:
            cursor.execute("SELECT * FROM scores FOR UPDATE")  # what the commit has to wait for
            assert writer.staged() == {"counted": 1000, "found": 1000}
            assert between.lost == 1
            [staged] = [name for name in tables(database) if name.startswith("hydrogen")]
            attempts = f"SELECT hydrogen_attempt, count(*) FROM {staged} GROUP BY 1"
            assert [count for _, count in database.rows(attempts)] == [500, 500, 500], "one task wrote twice"
            waits = f"datname = '{database.name}' AND query LIKE 'delete%' AND wait_event_type = 'Lock'"
            activity = "SELECT pid FROM pg_stat_activity WHERE "
            eventually(lambda: database.rows(activity + waits), "the commit has begun", 60)
            [[backend]] = database.rows(activity + waits)
            writer.kill()
        eventually(lambda: not database.rows(f"{activity} pid = {backend}"), "the server has seen it", 30)
    finally:
        writer.kill()
        between.close()
    assert found(database) == rows(0, 3)
    put(database, scores({"ds": "2013-01-02"}), numbers(spark, 5, 6))
    assert tables(database) == [staged, "scores"], "a leftover is not the business of other partitions"
    put(database, scores(), numbers(spark, 0, 9))
    assert found(database) == sorted([*rows(0, 9), *rows(5, 6, day="2013-01-02")])
    assert tables(database) == ["scores"]


def test_a_connection_that_is_lost_with_the_answer_to_the_commit(spark, postgres, put):
    database = postgres.database()
    put(database, scores(), numbers(spark, 0, 3))
    between = LosesAnAnswer(database.port)
    access = {"shop": database.options}
    try:
        with placements.placing(spark, scores(), None, access) as place:
            counted, _ = place.stage(numbers(spark, 5, 9), None)
            place._database.options["url"] = database.jdbc_url.replace(str(database.port), str(between.port))
            place.commit(rows=counted, model=None)
    finally:
        between.close()
    assert between.lost == 1
    assert found(database) == rows(5, 9)


def test_a_server_that_starts_again_in_mid_commit(spark, postgres, put, monkeypatch):
    database = postgres.database()
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:  # by then it has refused a connection
            postgres.server.start()

    with placements.placing(spark, scores(), None, {"shop": database.options}) as place:
        counted, _ = place.stage(numbers(spark, 5, 9), None)
        change = place._change

        def killed(*given):
            if not waits:
                postgres.server.kill()
            change(*given)

        place._change = killed
        monkeypatch.setattr(connections, "time", types.SimpleNamespace(sleep=wait))
        try:
            place.commit(rows=counted, model=None)
        finally:
            if len(waits) < 2:
                postgres.server.start()
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2
    assert found(database) == rows(5, 9)


def test_databases_that_are_not_known_have_their_own_isolation(spark, tmp_path):
    access = {
        "shop": {
            "url": f"jdbc:derby:{tmp_path}/db;create=true",
            "driver": "org.apache.derby.jdbc.EmbeddedDriver",
        }
    }

    def write(sink, frame):
        placements.require_writable(sink, access)
        with placements.placing(spark, sink, None, access) as place:
            counted, _ = place.stage(frame, None)
            assert place.count() == counted
            place.commit(rows=counted, model=None)
        there = spark.read.format("jdbc").options(**access["shop"])
        return sorted(tuple(row) for row in there.option("dbtable", "SCORES").load().collect())

    write(scores({"ds": "other"}), numbers(spark, 0, 1))
    write(scores(), numbers(spark, 0, 3))
    assert write(scores(), numbers(spark, 5, 7)) == sorted([(0, 0.0, "other"), *rows(5, 7)])
    merged = write(scores(mode="merge", keys=["id", "ds"]), numbers(spark, 6, 8, 2.0))
    assert merged == sorted([(0, 0.0, "other"), (5, 5.0, DAY["ds"]), *rows(6, 8, 2.0)])
    names = (
        spark.read.format("jdbc")
        .options(**access["shop"])
        .option("query", "select tablename from sys.systables")
        .load()
    )
    assert not [name for [name] in names.collect() if name.lower().startswith("hydrogen")]
