from __future__ import annotations

import json

import pyarrow as pa
import pytest

from airflow_hydrogen.contract.errors import UndecodableError
from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.streams import StreamOptions
from airflow_hydrogen.runtime.data.messages import FAULT, RAW
from airflow_hydrogen.runtime.scoring import inference, positions, streams
from airflow_hydrogen.runtime.scoring.streams import lag_of


def progress(*offsets: tuple[object, object]) -> dict[str, object]:
    return {
        "sources": [
            {"endOffset": json.dumps(reached), "latestOffset": json.dumps(latest)}
            for reached, latest in offsets
        ]
    }


def test_the_lag_is_what_lies_between_two_maps_of_offsets():
    assert lag_of(None) is None
    assert lag_of(progress(({"t": {"0": 5, "1": 2}}, {"t": {"0": 9, "1": 2, "2": 4}}))) == 8
    assert lag_of(progress(({"logOffset": 3}, None))) is None
    assert lag_of({"sources": [{"endOffset": None, "latestOffset": None}]}) is None


def test_a_store_that_does_not_answer_does_not_end_a_stream(monkeypatch, capsys):
    answers = [OSError("busy"), OSError("busy"), True]

    def exists(_uri: str) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(streams.filesystems, "exists", exists)
    stop_file = streams._StopFile("s3://lake/.checkpoint.stop")
    assert not stop_file.is_there()
    assert not stop_file.is_there()
    assert len(answers) == 2  # it was not asked again at once
    monkeypatch.setattr(streams, "LOOK_EVERY_S", 0.0)
    stop_file._next_look = 0.0
    assert [stop_file.is_there(), stop_file.is_there()] == [False, True]
    assert capsys.readouterr().out.count("busy") == 1


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({}, ()),
        ({"keep_columns": ["id"]}, ("kafka_key", "kafka_headers")),
        ({"keep_columns": ["id", "kafka_headers"]}, ("kafka_key",)),
        ({"keep_columns": ["id"], "prepare": "json:loads"}, ()),
        ({"keep_columns": ["id"], "on_bad_row": "drop"}, ("kafka_key", "kafka_headers")),
        ({"keep_columns": ["id"], "on_bad_row": "quarantine"}, ()),
        ({"keep_columns": ["id"], "sink": Sink.kafka("broker:9092", "scores")}, ()),
    ],
)
def test_spark_makes_no_columns_of_messages_that_nobody_asks_for(changes, left_out):
    fields = {
        "model_uri": "/m",
        "source": Source.kafka("broker:9092", "events", schema="id BIGINT, a DOUBLE"),
        "sink": Sink.parquet("/scores"),
        "report_uri": "/r",
        "stream": StreamOptions(trigger="available_now", checkpoint_uri="/checkpoint"),
    }
    assert streams._left_out(InferenceJob(**{**fields, **changes})) == left_out


def test_the_position_knows_a_folder_by_whatever_name_of_its_store():
    def described(scheme: str) -> dict[str, str]:
        return positions._describe(
            InferenceJob(
                model_uri="/m",
                source=Source.files_stream(f"{scheme}://lake/incoming"),
                sink=Sink.parquet(f"{scheme}://lake/scores"),
                report_uri="/r",
                stream=StreamOptions(trigger="available_now", checkpoint_uri="/checkpoint"),
            )
        )

    assert described("s3a") == described("s3")


def batch(*faults: str | None) -> pa.RecordBatch:
    raws = [None if fault is None else f"raw {n}" for n, fault in enumerate(faults)]
    return pa.RecordBatch.from_pydict(
        {"a": pa.array(range(len(faults))), RAW: pa.array(raws), FAULT: pa.array(faults, pa.string())}
    )


def test_rows_that_were_not_decoded_are_set_aside_by_their_faults():
    aside = []
    good = inference._decoded(batch(None, "x", "y", None, "x"), lambda *given: aside.append(given))
    assert good is not None
    assert good["a"].to_pylist() == [0, 3]
    assert [(bad.fault, rows[RAW].to_pylist(), list(bad.reasons)) for rows, bad in aside] == [
        ("x", ["raw 1", "raw 4"], ["x", "x"]),
        ("y", ["raw 2"], ["y"]),
    ]
    assert inference._decoded(batch("x"), lambda *_given: None) is None
    whole = batch(None)
    assert inference._decoded(whole, lambda *_given: pytest.fail("nothing is wrong")) is whole


def test_where_bad_rows_fail_the_job_the_first_of_them_is_told():
    with pytest.raises(UndecodableError, match="2 of 3 rows .* the first one: x: 'raw 1'"):
        inference._require_decoded(batch(None, "x", "y"))
    inference._require_decoded(batch(None))
