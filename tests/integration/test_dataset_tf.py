from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.errors import MissingColumnError
from airflow_hydrogen.runtime.data.dataset import DatasetShard

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
