"""TFRecord files: framing, checksums, and what becomes of examples.

Files that TensorFlow itself wrote are read in tests/integration/test_dataset_tf.py.
"""

from __future__ import annotations

import gzip
import struct

import pyarrow as pa
import pytest
from google_crc32c import value as crc32c
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.contract.errors import SourceError
from airflow_hydrogen.runtime.data import tfrecords
from airflow_hydrogen.runtime.data.tfrecords import Feature, example_class, read_file, records

AGE = Feature("age", "int64_list", False, pa.int64())
PIXELS = Feature("pixels", "float_list", True, pa.float32())
NAME = Feature("name", "bytes_list", False, pa.string())


def _masked(data):
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _framed(*data):
    lengths = [struct.pack("<Q", len(item)) for item in data]
    return b"".join(
        length + _masked(length) + item + _masked(item) for length, item in zip(lengths, data, strict=True)
    )


def _write(folder, content):
    path = folder / "a b%20c.tfrecord"
    path.write_bytes(content)
    return str(path)


def _example(**features):
    example = example_class()()
    for name, values in features.items():
        kind = {int: "int64_list", float: "float_list", bytes: "bytes_list"}[type(values[0])]
        getattr(example.features.feature[name], kind).value.extend(values)
    return example


def _rows(folder, *examples, features=(AGE, PIXELS, NAME), is_chosen=False):
    uri = _write(folder, _framed(*(example.SerializeToString() for example in examples)))
    return [row for batch in read_file(uri, features, is_chosen=is_chosen) for row in batch.to_pylist()]


@given(st.lists(st.binary(max_size=200), max_size=20), st.booleans())
def test_records_are_read_plain_and_gzipped(tmp_path_factory, data, zipped):
    content = _framed(*data)
    uri = _write(tmp_path_factory.mktemp("data"), gzip.compress(content) if zipped else content)
    assert list(records(uri)) == data


def test_a_length_that_begins_as_gzip_does_is_a_length(tmp_path):
    data = bytes(0x088B1F)
    assert struct.pack("<Q", len(data)).startswith(b"\x1f\x8b\x08")
    assert list(records(_write(tmp_path, _framed(data)))) == [data]


@given(st.integers(1, 53), st.booleans())
def test_a_file_that_is_cut_off_names_file_and_record(tmp_path_factory, kept, zipped):
    content = _framed(b"first", b"second record", b"x")  # 21, 29 and 17 bytes
    content = gzip.compress(content[:kept]) if zipped else content[:kept]
    uri = _write(tmp_path_factory.mktemp("data"), content)
    if kept in (21, 50):
        assert len(list(records(uri))) == (1 if kept == 21 else 2)
        return
    with pytest.raises(
        SourceError, match=f"record {1 + (kept > 21) + (kept > 50)}: the file ends in the mid"
    ) as error:
        list(records(uri))
    assert "a b%20c.tfrecord" in str(error.value)


@given(st.integers(0, 66), st.integers(1, 255))
def test_each_damaged_byte_is_found(tmp_path_factory, place, change):
    content = bytearray(_framed(b"first", b"second record", b"x"))
    content[place] ^= change
    uri = _write(tmp_path_factory.mktemp("data"), bytes(content))
    with pytest.raises(
        SourceError, match=f"record {1 + (place >= 21) + (place >= 50)}: its (length|data) ha"
    ):
        list(records(uri))


def test_a_gzip_file_that_is_cut_off_or_damaged_names_file_and_record(tmp_path):
    whole = gzip.compress(_framed(*(bytes([n]) * 1000 for n in range(100))), mtime=0)
    for content in (whole[:-40], whole[:200] + b"\xff\xff\xff\xff" + whole[204:]):
        with pytest.raises(SourceError, match=r"a b%20c.tfrecord.*record \d+: "):
            list(records(_write(tmp_path, content)))


def test_what_is_no_tfrecord_file_is_said_to_be_none(tmp_path):
    with pytest.raises(SourceError, match="record 1: .*or the file is no TFRecord file, plain or gzip"):
        list(records(_write(tmp_path, b"PAR1 and so on, for long enough")))


def test_one_value_is_a_scalar_others_are_lists_and_none_is_null(tmp_path):
    assert _rows(
        tmp_path,
        _example(age=[3], pixels=[0.5, 1.0], name=["ü".encode()]),
        _example(pixels=[2.0]),
        _example(age=[-1], name=[b""]),
    ) == [
        {"age": 3, "pixels": [0.5, 1.0], "name": "ü"},
        {"age": None, "pixels": [2.0], "name": None},
        {"age": -1, "pixels": None, "name": ""},
    ]


def test_a_list_without_values_is_an_empty_list(tmp_path):
    empty = _example(age=[1])
    empty.features.feature["pixels"].float_list.SetInParent()
    assert _rows(tmp_path, empty, _example(pixels=[1.0]), features=[PIXELS], is_chosen=True) == [
        {"pixels": []},
        {"pixels": [1.0]},
    ]


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ({"age": [1, 2]}, "record 2: feature 'age' has 2 values, expected one"),
        ({"age": [1.0]}, "record 2: feature 'age' is a float_list, expected int64_list"),
        ({"new": [1]}, "record 2: feature 'new' is not among the first records"),
        ({"name": [b"\xff\xfe"]}, "records 1 to 2: feature 'name' does not fit string"),
    ],
)
def test_what_does_not_fit_names_file_record_and_feature(tmp_path, second, problem):
    with pytest.raises(SourceError, match=f"a b%20c.tfrecord.*{problem}.*pass a schema"):
        _rows(tmp_path, _example(age=[1], name=[b"a"]), _example(**second))


def test_a_number_that_its_column_does_not_hold_is_an_error(tmp_path):
    small = AGE._replace(type=pa.int8())
    with pytest.raises(SourceError, match="feature 'age' does not fit int8"):
        _rows(tmp_path, _example(age=[300]), features=[small])


def test_features_that_nobody_chose_are_left_out(tmp_path):
    assert _rows(tmp_path, _example(age=[1], other=[2]), features=[AGE], is_chosen=True) == [{"age": 1}]


def test_batches_are_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecords, "_BATCH_ROWS", 4)
    monkeypatch.setattr(tfrecords, "_BATCH_BYTES", 1000)
    examples = [
        _example(name=[bytes([97 + n]) * (600 if n > 5 else 1)]).SerializeToString() for n in range(10)
    ]
    uri = _write(tmp_path, _framed(*examples))
    assert [batch.num_rows for batch in read_file(uri, [NAME], is_chosen=True)] == [4, 4, 2]


def test_what_is_no_example_is_refused(tmp_path):
    sequence = example_class()(feature_lists=b"\n\x00")
    for content, problem in (
        (b"\xff\xff", "it is no tf.train.Example"),
        (sequence.SerializeToString(), "SequenceE"),
    ):
        with pytest.raises(SourceError, match=f"record 2: .*{problem}"):
            list(read_file(_write(tmp_path, _framed(b"", content)), [AGE], is_chosen=True))


def test_the_schema_is_that_of_all_records_of_the_sample():
    examples = [_example(b=[b"x"], i=[1], f=[1.0]), _example(f=[1.0, 2.0]), _example(i=[2])]
    sample = [(example, 0) for example in examples]
    assert tfrecords._inferred("x", sample) == {"b": "binary", "f": "array<float>", "i": "bigint"}


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        ([_example], "no features: they are no tf.train.Example"),
        (
            [lambda: _example(a=[1]), lambda: _example(a=[1.0])],
            "'a' is a int64_list in one record and a float_list",
        ),
    ],
)
def test_a_sample_that_gives_no_schema_is_refused(sample, problem):
    with pytest.raises(SourceError, match=problem):
        tfrecords._inferred("x", [(make(), 0) for make in sample])


def test_a_feature_that_never_has_a_value_needs_a_schema():
    example = example_class()()
    example.features.feature["a"].SetInParent()
    with pytest.raises(SourceError, match="feature 'a' has no value in the first records; pass a schema"):
        tfrecords._inferred("x", [(example, 0)])


def test_a_missing_library_is_named_with_what_to_install(monkeypatch):
    tfrecords._crc32c.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "google_crc32c", None)
    with pytest.raises(SourceError, match=r"google-crc32c is not installed.*airflow-hydrogen\[tfrecord\]"):
        tfrecords._crc32c()
