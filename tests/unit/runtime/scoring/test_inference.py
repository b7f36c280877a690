from __future__ import annotations

import dataclasses
import datetime
import gc
import mmap
import sys
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.contract.errors import (
    BadRowsError,
    ModelSignatureError,
    PartitionValueError,
    ValueRangeError,
)
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime.models.inputs import model_inputs
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.scoring import inference, partitions
from airflow_hydrogen.runtime.scoring.accounts import ACCOUNT, Account
from airflow_hydrogen.runtime.scoring.inference import Scorer, Sifting, output_column, rebatch
from airflow_hydrogen.runtime.scoring.sizing import TRIED
from airflow_hydrogen.runtime.sinks.task_files import TaskFiles

UTC = datetime.timezone.utc


def _batch(**columns):
    return pa.record_batch(columns)


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 25))
def test_rebatch_keeps_every_row_in_order(sizes, rows):
    numbers = iter(range(sum(sizes)))
    batches = [_batch(x=pa.array([next(numbers) for _ in range(size)], pa.int64())) for size in sizes]
    made = list(rebatch(batches, lambda: rows))
    assert [row for batch in made for row in batch.column("x").to_pylist()] == list(range(sum(sizes)))
    assert all(batch.num_rows == rows for batch in made[:-1])
    assert all(0 < batch.num_rows <= rows for batch in made)


@pytest.mark.parametrize(
    ("held", "engine", "seen", "notes"),
    [
        (("0", "1"), "tensorflow", 2, []),
        (
            ("0", "1"),
            "tensorflow",
            0,
            ["TensorFlow sees 0 of the 2 GPUs of a task: it has to be installed with"],
        ),
        (("0",), "predictor", 0, []),
        ((), "tensorflow", 0, []),
    ],
)
def test_the_driver_hears_of_gpus_that_tensorflow_does_not_see(monkeypatch, held, engine, seen, notes):
    listed = SimpleNamespace(list_physical_devices=lambda kind: [kind] * seen)
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(config=listed))
    monkeypatch.setattr(inference.devices, "_held", held)
    found = inference._notes(engine)
    assert [note.startswith(start) for note, start in zip(found, notes, strict=True)] == [True] * len(notes)


def test_whole_batches_are_not_copied():
    batch = _batch(x=pa.array([1, 2, 3]))
    [made] = rebatch([batch], lambda: 3)
    assert made.column("x").buffers()[1].address == batch.column("x").buffers()[1].address


def test_no_row_is_lost_of_batches_that_are_too_large_to_be_joined():
    size = 900 * 2**20
    nothing = pa.py_buffer(mmap.mmap(-1, size))  # of which no page is touched
    places = pa.py_buffer(np.array([0, size], "int32"))
    raw = pa.BinaryArray.from_buffers(pa.binary(), 1, [None, places, nothing])
    batches = [pa.record_batch({"a": pa.array([row]), "raw": raw}) for row in range(5)]
    made = list(rebatch(batches, lambda: 4))
    assert [batch.column("a").to_pylist() for batch in made] == [[0], [1], [2], [3], [4]]


def _columns(*names, width=None, dtype="float32"):
    return tuple(ColumnSpec(name, dtype, width) for name in names)


def test_a_matrix_has_the_columns_in_the_signatures_order():
    spec = InputSpec("x", _columns("b", "a"), "float32", (2,))
    made = model_inputs(_batch(a=pa.array([1, 2]), b=pa.array([3.5, 4.5])), [spec])
    assert made["x"].dtype == np.float32
    assert made["x"].tolist() == [[3.5, 1.0], [4.5, 2.0]]


def test_named_inputs_take_the_shape_of_the_signature():
    specs = [
        InputSpec("scalar", _columns("a"), "float32", ()),
        InputSpec("column", _columns("a"), "int32", (1,)),
        InputSpec("word", _columns("w", dtype="string"), "string", (1,)),
        InputSpec("image", _columns("p", width=4), "float32", (2, 2)),
    ]
    batch = _batch(a=pa.array([1, 2]), w=pa.array(["x", "y"]), p=pa.array([[1.0, 2.0, 3.0, 4.0]] * 2))
    made = model_inputs(batch, specs)
    assert {name: array.shape for name, array in made.items()} == {
        "scalar": (2,),
        "column": (2, 1),
        "word": (2, 1),
        "image": (2, 2, 2),
    }


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


def _holds(dtype, number):
    if dtype == "bool":
        return number in (0, 1)
    return np.iinfo(dtype).min <= number <= np.iinfo(dtype).max


@given(st.data(), st.sampled_from([*INTEGERS, "bool"]), st.sampled_from([*INTEGERS, "bool"]), st.booleans())
def test_whole_numbers_arrive_as_they_are_or_not_at_all(data, found, wanted, matrix):
    bounds = (0, 1) if found == "bool" else (np.iinfo(found).min, np.iinfo(found).max)
    numbers = data.draw(
        st.lists(st.one_of(st.integers(*bounds), st.sampled_from([0, 1, *bounds])), min_size=1, max_size=4)
    )
    spec = InputSpec("x", _columns("a", dtype=wanted), wanted, (1,) if matrix else ())
    batch = _batch(a=pa.array(np.array(numbers, found)))
    if all(_holds(wanted, number) for number in numbers):
        made = model_inputs(batch, [spec])["x"]
        assert made.dtype == wanted
        assert [int(number) for number in made.ravel()] == numbers
    else:
        with pytest.raises(ValueRangeError, match=f"'a': expected whole numbers that {wanted} holds, found"):
            model_inputs(batch, [spec])


def test_a_whole_number_beyond_the_inputs_dtype_is_named():
    spec = InputSpec("user", _columns("user", dtype="int32"), "int32", (1,))
    with pytest.raises(ValueRangeError, match="column 'user': expected .* int32 holds, found 3000000000"):
        model_inputs(_batch(user=pa.array([1, 3_000_000_000])), [spec])


@pytest.mark.parametrize(
    ("values", "lost"),
    [(np.array([2**31]), "2147483648"), (np.array([0.5]), "0.5"), (np.array([np.nan]), "nan")],
)
def test_an_output_that_its_signatures_dtype_does_not_hold_is_not_written(values, lost):
    with pytest.raises(ModelSignatureError, match=f"output 'p' gave {lost}, which its signature's int32"):
        output_column(OutputSpec("p", "int32", ()), {"p": values}, 1)


@pytest.mark.parametrize(
    ("shape", "values", "type_", "expected"),
    [
        ((), [1.5, 2.5], pa.float32(), [1.5, 2.5]),
        ((1,), [[1.5], [2.5]], pa.float32(), [1.5, 2.5]),
        ((2,), [[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()), [[1.0, 2.0], [3.0, 4.0]]),
        (
            (1, 2),
            [[[1.0, 2.0]], [[3.0, 4.0]]],
            pa.list_(pa.list_(pa.float32())),
            [[[1.0, 2.0]], [[3.0, 4.0]]],
        ),
    ],
)
def test_outputs_become_columns(shape, values, type_, expected):
    column = output_column(OutputSpec("p", "float32", shape), {"p": np.array(values, np.float32)}, 2)
    assert column.type == type_
    assert column.to_pylist() == expected


def test_string_outputs_become_strings():
    column = output_column(OutputSpec("p", "string", (1,)), {"p": np.array([[b"a"], [b"b"]], object)}, 2)
    assert column.to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    "outputs", [{"q": np.zeros((2, 1))}, {"p": np.zeros((2, 3))}, {"p": np.zeros((1, 1))}]
)
def test_an_output_that_is_not_what_the_signature_says(outputs):
    with pytest.raises(ModelSignatureError, match="its signature says"):
        output_column(OutputSpec("p", "float32", (1,)), outputs, 2)


@pytest.fixture
def scorer(monkeypatch):
    """A scorer of a model that doubles `a`, and the list of its loads."""
    signature = Signature((InputSpec("a", _columns("a"), "float32", ()),), (OutputSpec("p", "float32", ()),))
    manifest = Manifest(framework="keras", entry="", signature=signature, files=())
    loads, held = [], []

    @contextmanager
    def load(uri, manifest, predictor, threads, engine):
        loads.append(manifest.created)
        held.append(manifest.created)
        yield lambda arrays: {"p": arrays["a"] * 2}
        held.remove(manifest.created)

    monkeypatch.setattr(inference, "load_predictor", load)
    monkeypatch.setattr(inference, "_loaded", {})
    monkeypatch.setattr(inference, "_trials", {})

    def make(created="", **changes):
        fields = {
            "model_uri": "m",
            "manifest": dataclasses.replace(manifest, created=created),
            "predictor": None,
            "engine": "tensorflow",
            "keep": ("k", "a"),
            "outputs": {"p": "score"},
            "constants": {},
            "batch_rows": 2,
            "threads": 1,
        }
        return Scorer(**{**fields, **changes})

    make.loads, make.held = loads, held
    yield make
    inference._files.close()
    gc.unfreeze()


def test_kept_columns_pass_through_and_predictions_follow(scorer):
    batch = _batch(a=pa.array([1.0, 2.0, 3.0]), k=pa.array(["x", None, "z"]))
    *scored, account = scorer()([batch])
    table = pa.Table.from_batches(scored).drop_columns(ACCOUNT)
    assert table.to_pydict() == {"k": ["x", None, "z"], "a": [1.0, 2.0, 3.0], "score": [2.0, 4.0, 6.0]}
    assert Account.loads(account.column(ACCOUNT)[0].as_py()) == Account(rows_in=3, rows=3)


def test_every_row_gets_what_is_added(scorer):
    batch = _batch(a=pa.array([1.0, 2.0, 3.0]), k=pa.array(["x", None, "z"]))
    *scored, _account = scorer(added={"version": "7f"})([batch])
    table = pa.Table.from_batches(scored)
    assert table.column_names == ["k", "a", "score", "version", ACCOUNT]
    assert table["version"].to_pylist() == ["7f"] * 3


def test_the_model_is_loaded_once_for_many_tasks_and_anew_when_it_was_published_anew(scorer):
    batch = _batch(a=pa.array([1.0]), k=pa.array(["x"]))
    list(scorer()([batch]))
    list(scorer()([batch]))
    assert len(scorer.loads) == 1
    list(scorer(created="2013")([batch]))
    assert scorer.loads == ["", "2013"]
    assert scorer.held == ["2013"]


def test_rows_of_a_call_are_found_out_with_rows_that_are_scored_once(scorer, tmp_path):
    schema = pa.schema([("k", pa.string()), ("a", pa.float64()), ("score", pa.float64())])
    (tmp_path / "out").mkdir()
    output = TaskFiles("sink", str(tmp_path / "out"), schema)
    rows = 50_000
    numbers = np.arange(rows, dtype="float64")
    batches = [_batch(a=pa.array(part), k=pa.nulls(len(part), pa.string())) for part in np.split(numbers, 5)]
    *beats, account = scorer(batch_rows="auto", output=output)(batches)
    found = Account.loads(account.column(ACCOUNT)[0].as_py())
    assert (found.rows_in, found.rows) == (rows, rows)
    [(size, of_rows)] = found.batch_rows.items()
    assert of_rows == rows
    assert size in TRIED
    assert len(beats) <= rows // 16384
    table = pq.read_table(tmp_path / "out" / found.files[0])
    assert np.array_equal(table.column("a"), numbers)
    assert np.array_equal(table.column("score"), 2 * numbers)


def test_what_was_found_out_is_kept_for_the_model_and_not_for_another_one(scorer):
    batches = [_batch(a=pa.array(np.zeros(50_000)), k=pa.nulls(50_000, pa.string()))]
    list(scorer(batch_rows="auto")(batches))
    [trial] = inference._trials.values()
    list(scorer(batch_rows="auto")(batches))
    assert [*inference._trials.values()] == [trial]
    list(scorer(created="2013", batch_rows="auto")(batches))
    assert inference._trials[scorer(created="2013")._key] is not trial
    assert len(inference._trials) == 1


def test_garbage_is_not_looked_for_in_a_loaded_model_until_another_takes_its_place(scorer, monkeypatch):
    class Model:
        def __init__(self):
            self.itself = self  # as a framework's: it goes only when garbage is collected

        def __call__(self, arrays):
            return {"p": arrays["a"]}

    alive = []

    @contextmanager
    def load(*_):
        model = Model()
        alive.append(weakref.ref(model))
        yield model

    monkeypatch.setattr(inference, "load_predictor", load)
    batch = _batch(a=pa.array([1.0]), k=pa.array(["x"]))
    list(scorer()([batch]))
    assert not any(found is alive[0]() for found in gc.get_objects()), "it is frozen"
    list(scorer(created="2013")([batch]))
    assert [model() is not None for model in alive] == [False, True]


def test_a_task_without_rows_loads_no_model(scorer):
    assert list(scorer()([])) == []
    assert scorer.loads == []


def test_rows_of_another_partition_are_refused(scorer):
    batch = _batch(a=pa.array([1.0, 2.0]), k=pa.array(["x", "y"]), ds=pa.array(["2013-01-01", "2013-01-02"]))
    with pytest.raises(
        PartitionValueError, match="the sink's partition is '2013-01-01', the source has rows of"
    ):
        list(scorer(constants={"ds": "2013-01-01"})([batch]))


@pytest.mark.parametrize(
    ("text", "value", "type_"),
    [
        ("05", 5, pa.int64()),
        ("5", 5, pa.int8()),
        ("05", "05", pa.string()),
        ("2013-01-05", datetime.date(2013, 1, 5), pa.date32()),
        ("2013-01-05T00:00:00+00:00", datetime.datetime(2013, 1, 5, tzinfo=UTC), pa.timestamp("us")),
        ("2013-01-05 00:00:00", datetime.datetime(2013, 1, 5, tzinfo=UTC), pa.timestamp("us", "UTC")),
        ("2013-01-05T02:00:00+02:00", datetime.datetime(2013, 1, 5, tzinfo=UTC), pa.timestamp("us", "UTC")),
        ("1.50", 1.5, pa.float64()),
        ("0.1", 0.1, pa.float32()),
        ("true", True, pa.bool_()),
    ],
)
def test_a_partition_is_compared_as_its_columns_type(text, value, type_):
    partitions.require_constant("hour", pa.array([value, value], type_), text)
    partitions.require_constant("hour", pa.array([], type_), text)
    with pytest.raises(PartitionValueError):
        partitions.require_constant("hour", pa.array([value, None], type_), text)


@pytest.mark.parametrize(
    ("text", "value"), [("05", 6), ("05", "5"), ("x", 5), ("2013-01-05", datetime.date(2013, 1, 6))]
)
def test_another_partition_is_still_refused(text, value):
    with pytest.raises(PartitionValueError, match=f"partition is '{text}', the source has rows of '{value}'"):
        partitions.require_constant("hour", pa.array([value]), text)


def test_a_task_ends_with_its_account(scorer, tmp_path):
    schema = pa.schema([("k", pa.string()), ("a", pa.float64()), ("reason", pa.string())])
    (tmp_path / "bad").mkdir()
    bad = TaskFiles("quarantine", str(tmp_path / "bad"), schema)
    batch = _batch(a=pa.array([1.0, None, 3.0]), k=pa.array(["x", "y", "z"]))
    *scored, account = scorer(sifting=Sifting("/scores", None), bad_output=bad)([batch])
    assert pa.Table.from_batches(scored).to_pydict() == {
        "k": ["x", "z"],
        "a": [1.0, 3.0],
        "score": [2.0, 6.0],
        ACCOUNT: [None, None],
    }
    assert account.schema == scored[0].schema
    *nothing, text = account.to_pylist()[0].values()
    assert nothing == [None, None, None]
    found = Account.loads(text)
    assert (found.rows_in, found.rows, found.bad, found.unproven) == (3, 2, {"column 'a': null": 1}, 0)
    assert [path.name for path in (tmp_path / "bad").iterdir()] == found.bad_files
    assert found.files == []


def test_a_task_that_writes_its_rows_answers_with_their_file(scorer, tmp_path):
    schema = pa.schema([("k", pa.string()), ("a", pa.float64()), ("score", pa.float64())])
    (tmp_path / "out").mkdir()
    output = TaskFiles("sink", str(tmp_path / "out"), schema)
    batches = [_batch(a=pa.array([1.0, 2.0]), k=pa.array(["x", "y"]))] * 3
    *beats, account = scorer(output=output)(batches)
    assert [beat.to_pydict() for beat in beats] == [{ACCOUNT: [None]}] * 2
    found = Account.loads(account.column(ACCOUNT)[0].as_py())
    assert (found.rows_in, found.rows) == (6, 6)
    [name] = found.files
    table = pq.read_table(tmp_path / "out" / name)
    assert table.schema == schema
    assert table.column("score").to_pylist() == [2.0, 4.0] * 3


def test_a_model_may_answer_in_the_same_array_each_time(scorer, tmp_path, monkeypatch):
    """Rows wait until there are enough to be written."""
    answer = np.empty(2, "float32")

    @contextmanager
    def load(*_):
        yield lambda arrays: {"p": np.multiply(arrays["a"], 10, out=answer, casting="same_kind")}

    monkeypatch.setattr(inference, "load_predictor", load)
    (tmp_path / "out").mkdir()
    output = TaskFiles("sink", str(tmp_path / "out"), pa.schema([("score", pa.float32())]))
    batches = [_batch(a=pa.array([float(n), n + 0.5]), k=pa.array(["x", "y"])) for n in range(3)]
    list(scorer(output=output)(batches))
    [file] = (tmp_path / "out").iterdir()
    assert pq.read_table(file).column("score").to_pylist() == [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]


def test_a_task_whose_rows_are_all_bad_has_an_account_alone(scorer):
    batch = _batch(a=pa.array([None], "float64"), k=pa.array(["x"]))
    [account] = scorer(sifting=Sifting("/scores", None))([batch])
    assert account.schema.names == ["k", "a", "score", ACCOUNT]
    assert account.schema.field("score").type == pa.float32()
    assert Account.loads(account.column(ACCOUNT)[0].as_py()).rows_bad == 1
    assert list(scorer(sifting=Sifting("/scores", None))([])) == []


def test_a_task_with_more_bad_rows_than_the_job_may_have_ends_at_once(scorer):
    batches = [_batch(a=pa.array([None, 1.0], "float64"), k=pa.array(["x", "y"]))] * 100
    seen = iter(batches)
    with pytest.raises(
        BadRowsError, match="2 of 4 rows so far in one task cannot be scored, more than max_bad"
    ):
        list(scorer(sifting=Sifting("/scores", 1))(seen))
    assert len(list(seen)) == 98


def test_rows_of_another_partition_are_no_bad_rows(scorer):
    batch = _batch(a=pa.array([1.0]), k=pa.array(["x"]), ds=pa.array([None], "string"))
    with pytest.raises(PartitionValueError):
        list(scorer(constants={"ds": "2013-01-01"}, sifting=Sifting("/scores", None))([batch]))
