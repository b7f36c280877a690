from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.errors import MissingColumnError, SourceError
from airflow_hydrogen.runtime.data.dataset import DatasetShard
from airflow_hydrogen.runtime.data.tfrecords import read_tfrecords

pytestmark = pytest.mark.integration


def _write(folder, rows):
    numbers = np.arange(rows)
    table = pa.table(
        {"id": numbers, "x": numbers * 0.5, "word": [f"w{n}" for n in numbers], "y": numbers % 2}
    )
    pq.write_table(table, folder / "part-0.parquet", row_group_size=4)
    return str(folder)


def test_a_matrix_holds_all_columns_but_the_label(tmp_path):
    shard = DatasetShard(_write(tmp_path, 10))
    [(features, label)] = shard.to_tf(10, "y", features=["id", "x"])
    assert features.dtype.name == "float32"
    assert features.shape == (10, 2)
    assert np.allclose(features[:, 0] / 2, features[:, 1])
    assert np.array_equal(label, features[:, 0] % 2)


def test_named_inputs_keep_their_types_and_labels_may_be_several(tmp_path):
    shard = DatasetShard(_write(tmp_path, 10), shuffle=False)
    dataset = shard.to_tf(4, ["y", "id"], layout="columns")
    assert int(dataset.cardinality()) == 3
    # TensorFlow's tuner would make the end of an epoch wait for its thread, for seconds now and then.
    assert dataset.options().autotune.enabled is False
    features, labels = next(iter(dataset))
    assert {name: tensor.dtype.name for name, tensor in features.items()} == {
        "x": "float64",
        "word": "string",
    }
    assert features["word"].numpy().tolist() == [b"w0", b"w1", b"w2", b"w3"]
    assert labels["id"].numpy().tolist() == [0, 1, 2, 3]


def test_missing_columns_are_named_with_those_found(tmp_path):
    shard = DatasetShard(_write(tmp_path, 10))
    with pytest.raises(
        MissingColumnError, match="label 'late' not found; the columns are 'id', 'x', 'word', 'y'"
    ):
        shard.to_tf(4, "late")
    with pytest.raises(MissingColumnError, match="feature 'nose' not found"):
        shard.to_tf(4, "y", features=["x", "nose"])


def test_strings_do_not_go_into_a_matrix(tmp_path):
    with pytest.raises(Exception, match="column 'word': expected a number, found string; .*layout='columns'"):
        DatasetShard(_write(tmp_path, 10)).to_tf(4, "y")


def test_a_tensor_column_keeps_its_width(tmp_path):
    table = pa.table({"pixels": pa.array([[1.0, 2.0, 3.0]] * 5), "y": range(5)})
    pq.write_table(table, tmp_path / "a.parquet")
    shard = DatasetShard(str(tmp_path))
    [(features, _)] = shard.to_tf(5, "y")
    assert features.shape == (5, 3)
    assert shard.layout is not None and shard.layout.features[0].width == 3


def test_steps_are_whole_batches_across_windows_and_epochs(tmp_path):
    shard = DatasetShard(_write(tmp_path, 103), rank=0, size=2)
    dataset = shard.to_tf(10, "y", features=["id"])
    epochs = [[features.numpy().ravel().tolist() for features, _ in dataset] for _ in range(2)]
    assert [[len(batch) for batch in epoch] for epoch in epochs] == [[10, 10, 10, 10, 10, 2]] * 2
    assert epochs[0] != epochs[1]


def test_an_error_in_the_data_is_kept_for_the_ranks_report(tmp_path):
    pq.write_table(pa.table({"x": [1.0, None], "y": [0, 1]}), tmp_path / "a.parquet")
    shard = DatasetShard(str(tmp_path))
    with pytest.raises(Exception, match="NullValueError"):
        list(shard.to_tf(2, "y"))
    assert "column 'x'" in str(shard.error)


# --- TFRecord files that TensorFlow wrote --------------------------------------------------------------


@pytest.fixture
def flights(tmp_path):
    """A folder of 30 examples: two files in each of two partition folders, one of each two gzipped."""
    import tensorflow as tf

    for number in range(4):
        folder = tmp_path / f"ds=2013-01-0{1 + number // 2}"
        folder.mkdir(exist_ok=True)
        path = str(folder / f"part {number}%20.tfrecord")
        compression = "GZIP" if number % 2 else None
        with tf.io.TFRecordWriter(path, compression) as writer:
            for row in range(number * 10, number * 10 + 10 - 5 * (number // 2)):
                writer.write(_flight(tf, row).SerializeToString())
    return str(tmp_path)


def _flight(tf, row):
    train = tf.train
    features = {
        "id": train.Feature(int64_list=train.Int64List(value=[row])),
        "delay": train.Feature(float_list=train.FloatList(value=[row * 0.5])),
        "carrier": train.Feature(bytes_list=train.BytesList(value=[f"ü{row}".encode()])),
        "legs": train.Feature(int64_list=train.Int64List(value=[-row] * (row % 3))),
    }
    if row % 5 == 0:
        del features["delay"]
    return train.Example(features=train.Features(feature=features))


_IDS = [*range(20), *range(20, 25), *range(30, 35)]


def test_what_tensorflow_wrote_is_read_with_the_schema_of_its_records(spark, flights):
    frame = read_tfrecords(spark, flights, {})
    assert frame.schema.simpleString() == (
        "struct<carrier:binary,delay:float,id:bigint,legs:array<bigint>,ds:date>"
    )
    plan = frame._jdf.queryExecution().executedPlan().toString()
    assert "ReadSchema: struct<path:string>" in plan, "Spark itself reads the files' bytes too"
    found = [row.asDict() for row in frame.orderBy("id").collect()]
    assert [row["id"] for row in found] == _IDS
    assert [row["delay"] for row in found] == [row * 0.5 if row % 5 else None for row in _IDS]
    assert [bytes(row["carrier"]).decode() for row in found] == [f"ü{row}" for row in _IDS]
    assert [row["legs"] for row in found] == [[-row] * (row % 3) for row in _IDS]
    assert [str(row["ds"]) for row in found] == [f"2013-01-0{1 + row // 20}" for row in _IDS]


def test_a_schema_and_columns_say_what_is_read_and_as_what(spark, flights):
    schema = "carrier STRING, id INT, delay DOUBLE"
    frame = read_tfrecords(spark, f"{flights}/ds=2013-01-02/*", {"schema": schema}, ["id", "carrier"])
    assert frame.schema.simpleString() == "struct<id:int,carrier:string>"
    assert sorted(tuple(row) for row in frame.collect()) == [(row, f"ü{row}") for row in _IDS[20:]]
    with pytest.raises(MissingColumnError, match="column 'nose' not found; the columns are 'carrier'"):
        read_tfrecords(spark, flights, {"schema": schema}, ["nose"])
    with pytest.raises(SourceError, match="unknown option 'colums'; expected schema, pathGlobFilter"):
        read_tfrecords(spark, flights, {"colums": "id"})
    with pytest.raises(SourceError, match="column 'id' of the schema is date; expected tinyint"):
        read_tfrecords(spark, flights, {"schema": "id DATE"})


def test_a_damaged_file_fails_the_query_and_is_named_with_its_record(spark, flights):
    from pathlib import Path

    from pyspark.errors import PySparkException

    damaged = Path(flights) / "ds=2013-01-02" / "part 2%20.tfrecord"
    content = bytearray(damaged.read_bytes())
    content[-20] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(
        PySparkException, match=r"part 2%20.tfrecord.*record 5: its data have another checksum"
    ):
        read_tfrecords(spark, flights, {"schema": "id BIGINT"}).collect()


def test_the_files_decide_whether_prepared_records_are_used_again(spark, flights):
    from airflow_hydrogen.runtime.data.recipes import files_of

    before = files_of(read_tfrecords(spark, flights, {}))
    assert before is not None
    assert before == files_of(read_tfrecords(spark, flights, {}))
    assert before != files_of(read_tfrecords(spark, f"{flights}/ds=2013-01-01", {}))


def test_no_record_gives_no_schema(spark, tmp_path):
    (tmp_path / "empty.tfrecord").touch()
    with pytest.raises(SourceError, match="there is no record by which to know the columns; pass a schema"):
        read_tfrecords(spark, str(tmp_path), {})
    assert read_tfrecords(spark, str(tmp_path), {"schema": "id BIGINT"}).count() == 0
