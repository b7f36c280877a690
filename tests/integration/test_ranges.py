"""One application for many partitions: each replaced at once, those without rows too, and no others."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    ColumnTypeError,
    InvalidJobError,
    MissingColumnError,
    PartitionTakenError,
    PartlyReplacedError,
    RowsLostError,
    UndeclaredPartitionError,
)
from airflow_hydrogen.contract.jobs import InferenceJob, Run, Sink, Source, days
from airflow_hydrogen.runtime.scoring.application import run_inference
from airflow_hydrogen.runtime.sinks import partitioned
from airflow_hydrogen.runtime.sinks.task_files import TaskFiles
from airflow_hydrogen.runtime.storage import partition_files, swap
from tests.integration.models import publish_plain

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("spark")]

FIRST = datetime.date(2013, 1, 1)
DAYS = [str(FIRST + datetime.timedelta(day)) for day in range(12)]
EMPTY = DAYS[7]
DECLARED = DAYS[1:11]
RANGE = "ds >= '2013-01-02' and ds < '2013-01-12'"
RUN = Run(dag_id="d", task_id="t", run_id="r")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return publish_plain(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """Twelve days of ten flights each in folders of their own, but for one day that has none."""
    folder = tmp_path_factory.mktemp("lake")
    for number, day in enumerate(DAYS):
        if day != EMPTY:
            (folder / f"ds={day}").mkdir()
            pq.write_table(flights(number), folder / f"ds={day}" / "rows.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The same flights in two files of all days, and the day is a date."""
    folder = tmp_path_factory.mktemp("mixed")
    tables = [
        flights(number).append_column("ds", pa.array([datetime.date.fromisoformat(day)] * 10, pa.date32()))
        for number, day in enumerate(DAYS)
        if day != EMPTY
    ]
    rows = pa.concat_tables(tables)
    for number, order in enumerate(np.split(np.random.default_rng(0).permutation(rows.num_rows), 2)):
        pq.write_table(rows.take(pa.array(order)), folder / f"{number}.parquet")
    return str(folder)


def flights(number):
    ids = np.arange(10) + 100 * number
    return pa.table({"id": ids, "a": ids.astype("float64"), "b": np.full(10, number, "int32")})


@pytest.fixture
def scores(tmp_path):
    """The table, in which the days before and behind the range have rows of others."""
    for day in (DAYS[0], DAYS[11]):
        (tmp_path / "scores" / f"ds={day}").mkdir(parents=True)
        pq.write_table(pa.table({"id": [-1]}), tmp_path / "scores" / f"ds={day}" / "old.parquet")
    return tmp_path / "scores"


@pytest.fixture
def score(tmp_path, plain, lake, scores):
    def run(**changes):
        fields = {
            "model_uri": plain,
            "source": Source.parquet(lake, where=RANGE),
            "sink": Sink.parquet(
                str(scores), partition_by=["ds"], partitions=days("2013-01-02", "2013-01-12")
            ),
            "report_uri": str(tmp_path / "report.json"),
            "batch_rows": 16,
        }
        return run_inference(InferenceJob(**{**fields, **changes}))

    return run


def rows_of(scores: Path, day: str) -> list[int]:
    """What a reader finds of a day that honours lists."""
    folder = str(scores / f"ds={day}")
    names = [name for name, _ in partition_files.listed_files(folder)]
    return sorted(
        number
        for name in names
        for number in pq.read_table(Path(folder, name), partitioning=None)["id"].to_pylist()
    )


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def require_scored(scores: Path) -> None:
    for number, day in enumerate(DAYS[1:11], 1):
        expected = [] if day == EMPTY else [100 * number + row for row in range(10)]
        assert rows_of(scores, day) == expected, day
    assert sorted(os.listdir(scores)) == [f"ds={day}" for day in DAYS], "nothing is left behind"


@pytest.mark.parametrize("writer", ["workers", "Spark"])
@pytest.mark.parametrize("source", ["lake", "mixed"])
def test_the_declared_partitions_are_replaced_and_no_others(
    score, scores, spark, request, monkeypatch, writer, source
):
    if writer == "Spark":
        monkeypatch.setattr("airflow_hydrogen.runtime.scoring.planning.is_plain", lambda _type: False)
    (scores / f"ds={EMPTY}").mkdir()
    pq.write_table(pa.table({"id": [-2]}), scores / f"ds={EMPTY}" / "old.parquet")
    before = content(scores)
    report = score(source=Source.parquet(request.getfixturevalue(source), where=RANGE))
    require_scored(scores)
    after = content(scores)
    assert {name for name in before if after.get(name) == before[name]} == {
        f"ds={day}/old.parquet" for day in (DAYS[0], DAYS[11])
    }, "the neighbours are as they were, byte for byte"
    assert report.output_uri == str(scores)
    assert report.partitions == {f"ds={day}": 0 if day == EMPTY else 10 for day in DECLARED}
    assert (report.rows, report.rows_in) == (90, 90)
    table = spark.read.parquet(f"{scores}/ds={DAYS[1]}", f"{scores}/ds={EMPTY}")
    assert table.columns == ["id", "a", "b", "prediction"], "the partition's column is in no file"
    assert table.where("prediction = a + 10 * b").count() == 10
    empty = pq.read_table(next((scores / f"ds={EMPTY}").glob("*.parquet")), partitioning=None)
    assert (empty.num_rows, empty.schema.names) == (0, table.columns)
    names = [path.name for path in (scores / f"ds={DAYS[1]}").glob("*.parquet")]
    assert names and all((".c000." in name) is (writer == "Spark") for name in names)


@pytest.mark.parametrize("where", [None, "id % 1000 >= 0"], ids=["read by workers", "read by Spark"])
def test_a_row_of_another_partition_fails_the_job_and_replaces_nothing(score, scores, lake, where):
    before = content(scores)
    message = (
        r"the source has rows of ds='2013-01-01', .*partitions by 'ds' are 10: '2013-01-02' to '2013-01-11'; "
        "nothing is replaced. Filter the source with 'where'"
    )
    with pytest.raises(UndeclaredPartitionError, match=message):
        score(source=Source.parquet(lake, where=f"ds < '2013-01-04' and {where or 'true'}"))
    assert content(scores) == before and len(os.listdir(scores)) == 2


@pytest.mark.parametrize("on_bad_row", ["fail", "drop"])
def test_a_row_without_partition_fails_the_job(score, scores, tmp_path, on_bad_row):
    rows = flights(1).append_column("ds", pa.array(["2013-01-02"] * 9 + [None]))
    pq.write_table(rows, tmp_path / "rows.parquet")
    with pytest.raises(UndeclaredPartitionError, match="has rows of ds=null, "):
        score(source=Source.parquet(str(tmp_path / "rows.parquet")), on_bad_row=on_bad_row)
    assert len(os.listdir(scores)) == 2


def test_partitions_of_two_columns_with_values_that_folders_escape(score, tmp_path):
    rows = flights(1).append_column("hour", pa.array([5, 6] * 5, pa.int16()))
    rows = rows.append_column("To", pa.array(["a/b", "a/b", "ü c"] * 3 + ["ü c"]))
    pq.write_table(rows, tmp_path / "rows.parquet")
    declared = [{"to": to, "hour": hour} for to in ("a/b", "ü c", "d") for hour in ("05", "6")]
    sink = Sink.parquet(str(tmp_path / "by-two"), partition_by=["to", "hour"], partitions=declared)
    report = score(source=Source.parquet(str(tmp_path / "rows.parquet")), sink=sink)
    assert report.partitions == {
        "to=a%2Fb/hour=05": 3,
        "to=a%2Fb/hour=6": 3,
        "to=ü c/hour=05": 2,
        "to=ü c/hour=6": 2,
        "to=d/hour=05": 0,
        "to=d/hour=6": 0,
    }
    for folder, rows_there in report.partitions.items():
        [file] = (tmp_path / "by-two" / folder).iterdir()
        assert pq.ParquetFile(file).metadata.num_rows == rows_there
    several = Sink.parquet(str(tmp_path / "x"), partition_by=["to", "hour"], partitions=declared[:2])
    message = r"rows of To='ü c'/hour='5', To='ü c'/hour='6', .*'a/b/05', 'a/b/6'; nothing"
    with pytest.raises(UndeclaredPartitionError, match=message):
        score(source=Source.parquet(str(tmp_path / "rows.parquet")), sink=several)


@pytest.mark.parametrize(
    ("columns", "partitions", "error", "message"),
    [
        (["day"], ["1"], MissingColumnError, "partition column 'day' not found; the columns are 'id', 'a'"),
        (["b"], ["1", "x"], ColumnTypeError, "column 'b': expected int, found 'x'; change the sink's part"),
        (
            ["b"],
            ["1", "01"],
            InvalidJobError,
            "partitions '1' and '01' are one value of column 'b', which is",
        ),
    ],
)
def test_what_does_not_fit_the_source_is_found_before_any_row_is_read(
    score, tmp_path, columns, partitions, error, message
):
    with pytest.raises(error, match=message):
        score(sink=Sink.parquet(str(tmp_path / "other"), partition_by=columns, partitions=partitions))
    assert not (tmp_path / "other").exists()


def test_bad_rows_go_to_the_same_partitions_of_a_table_of_their_own(score, scores, tmp_path):
    tables = []
    for number in (1, 2):
        a = pa.array([None if row == number else float(row) for row in range(10)])
        table = flights(number).set_column(1, "a", a)
        tables.append(table.append_column("ds", pa.array([DAYS[number]] * 10)))
    pq.write_table(pa.concat_tables(tables), tmp_path / "rows.parquet")
    report = score(source=Source.parquet(str(tmp_path / "rows.parquet")), on_bad_row="quarantine")
    assert (report.rows_in, report.rows, report.rows_quarantined) == (20, 18, 2)
    bad = tmp_path / "scores_quarantine"
    assert report.quarantine_uri == str(bad)
    assert [rows_of(bad, day) for day in DECLARED[:3]] == [[101], [202], []]
    assert sorted(os.listdir(bad)) == [f"ds={day}" for day in DECLARED]
    assert report.partitions["ds=2013-01-02"] == 9


class _Killed(BaseException):
    """As a kill: nothing is swept that an Exception would sweep."""


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "switch"])
def test_a_job_that_dies_between_two_swaps_leaves_old_partitions_and_new_ones(
    score, scores, monkeypatch, exchanges, lake
):
    if not exchanges:
        monkeypatch.setattr(swap, "exchange", lambda *_: False)
    score(run=RUN)
    shorter = Source.parquet(lake, where=f"{RANGE} and id % 100 < 5")
    commit, done = swap.Replacement.commit, []

    def die(replacement, **told):
        if len(done) == 4:
            raise _Killed
        commit(replacement, **told)
        done.append(replacement.target)

    monkeypatch.setattr("airflow_hydrogen.runtime.storage.filesystems._AT_ONCE", 1)
    with monkeypatch.context() as patched:
        patched.setattr(swap.Replacement, "commit", die)
        patched.setattr(swap, "sweep", lambda _uri: None)
        with pytest.raises(_Killed):
            score(run=RUN, source=shorter)
    for day in DECLARED:
        is_new = str(scores / f"ds={day}") in done
        assert len(rows_of(scores, day)) == (0 if day == EMPTY else 5 if is_new else 10), day
    assert len(done) == 4
    assert len(os.listdir(scores)) > 12, "what it has left behind"
    report = score(run=RUN, source=shorter)
    assert report.rows == sum(len(rows_of(scores, day)) for day in DECLARED) == 45
    assert sorted(os.listdir(scores)) == [f"ds={day}" for day in DAYS]


def test_a_store_that_fails_between_two_swaps_is_told_with_what_is_replaced(
    score, scores, monkeypatch, capsys
):
    commit, done = swap.Replacement.commit, []

    def fail(replacement, **told):
        if len(done) == 3:
            raise OSError("503 slow down")
        commit(replacement, **told)
        done.append(os.path.basename(replacement.target))

    monkeypatch.setattr("airflow_hydrogen.runtime.storage.filesystems._AT_ONCE", 1)
    with monkeypatch.context() as patched:
        patched.setattr(swap.Replacement, "commit", fail)
        message = r"3 of 10 partitions of '.*/scores' hold the new rows \(ds=2013-01-02, .*503 slow down"
        with pytest.raises(PartlyReplacedError, match=message) as caught:
            score()
    assert caught.value.replaced == done and caught.value.retryable
    assert f"these partitions hold the new rows: {', '.join(done)}" in capsys.readouterr().out
    score()
    require_scored(scores)


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "switch"])
def test_a_newer_job_of_a_day_that_is_in_place_leaves_the_others_to_the_range(
    score, scores, lake, monkeypatch, exchanges
):
    """It removes what was staged of its own day, and nothing that the older job has still to put in place."""
    commit, done = swap.Replacement.commit, []
    single = Sink.parquet(str(scores), partition={"ds": DECLARED[0]})

    def begin_another(replacement, **told):
        commit(replacement, **told)
        done.append(replacement.target)
        if len(done) == 2:
            score(sink=single, source=Source.parquet(f"{lake}/ds={DECLARED[0]}", where="id % 100 < 2"))

    if not exchanges:
        monkeypatch.setattr(swap, "exchange", lambda *_: False)
    monkeypatch.setattr("airflow_hydrogen.runtime.storage.filesystems._AT_ONCE", 1)
    monkeypatch.setattr(swap.Replacement, "commit", begin_another)
    score()
    assert [len(rows_of(scores, day)) for day in DECLARED] == [2, *[10] * 5, 0, *[10] * 3]
    assert sorted(os.listdir(scores)) == [f"ds={day}" for day in DAYS]


def test_a_newer_job_of_the_same_range_takes_what_an_older_one_puts_in_place(score, scores, monkeypatch):
    """The older one finds that what it has staged is gone, and says why: no retry takes it back."""
    commit, begun = swap.Replacement.commit, []

    def take_meanwhile(replacement, **told):
        commit(replacement, **told)
        if not begun:
            begun.append(swap.replacing_all([str(scores / f"ds={day}") for day in DECLARED]))
            begun[0].__enter__()

    monkeypatch.setattr("airflow_hydrogen.runtime.storage.filesystems._AT_ONCE", 1)
    monkeypatch.setattr(swap.Replacement, "commit", take_meanwhile)
    with pytest.raises(PartlyReplacedError, match="1 of 10 partitions .*was taken by another app") as caught:
        score()
    assert not caught.value.retryable, "while the newer one writes"
    begun[0].__exit__(None, None, None)
    score()
    require_scored(scores)


def test_a_backfill_of_one_day_that_begins_later_keeps_its_rows(score, scores, lake, monkeypatch):
    """The range is scored and has replaced nothing when the day is claimed: all of it is to be done again."""
    day = DAYS[3]
    found = partitioned.PartitionedFiles.found
    single = Sink.parquet(str(scores), partition={"ds": day})

    def found_meanwhile(files, *given):
        monkeypatch.setattr(partitioned.PartitionedFiles, "found", found)
        score(sink=single, source=Source.parquet(f"{lake}/ds={day}", where="id % 100 < 2"))
        return found(files, *given)

    monkeypatch.setattr(partitioned.PartitionedFiles, "found", found_meanwhile)
    with pytest.raises(
        PartitionTakenError, match=f"partition '.*/ds={day}' was taken by .*finished"
    ) as caught:
        score()
    assert caught.value.retryable
    assert rows_of(scores, day) == [300, 301]
    assert sorted(os.listdir(scores)) == [f"ds={there}" for there in (DAYS[0], day, DAYS[11])]
    score()
    require_scored(scores)


def test_rows_of_one_partition_that_the_driver_does_not_find_replace_nothing(score, scores, monkeypatch):
    bring = TaskFiles.bring
    monkeypatch.setattr(
        TaskFiles,
        "bring",
        lambda files, names, place: bring(files, [name for name in names if "=3-" not in name], place),
    )
    with pytest.raises(RowsLostError, match="wrote 10 rows for '.*/ds=2013-01-05', the driver finds 0"):
        score()
    assert len(os.listdir(scores)) == 2


def test_a_table_is_found_whatever_its_spelling(score, tmp_path):
    sink = Sink.parquet(f"{tmp_path}//scores/", partition_by=["ds"], partitions=DECLARED)
    report = score(sink=sink)
    assert uris.canonical(report.output_uri) == str(tmp_path / "scores")
    require_scored(tmp_path / "scores")
