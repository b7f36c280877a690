"""Many partitions of one job: how they are declared, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from airflow_hydrogen.contract import jobs
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source, days
from airflow_hydrogen.contract.streams import StreamOptions


def inference_job(**changes: Any) -> InferenceJob:
    fields = {
        "model_uri": "/models/m",
        "source": Source.parquet("/lake"),
        "report_uri": "/tmp/report.json",
    }
    return InferenceJob(**{**fields, **changes})


def many(partitions: Any, by: Sequence[str] = ("ds",), uri: str = "/scores") -> Sink:
    return Sink.parquet(uri, partition_by=by, partitions=partitions)


@pytest.mark.parametrize(
    "partitions",
    [
        days("2012-12-31", "2013-01-02"),
        ["2012-12-31", "2013-01-01"],
        [{"ds": "2012-12-31"}, "2013-01-01"],
    ],
    ids=["days", "values", "mappings"],
)
def test_partitions_are_declared_in_three_ways_and_travel_as_one(partitions: Any) -> None:
    job = inference_job(sink=many(partitions))
    assert job.sink.partitions == ({"ds": "2012-12-31"}, {"ds": "2013-01-01"})
    assert job.sink.folders == ["/scores/ds=2012-12-31", "/scores/ds=2013-01-01"]
    assert (job.sink.output, job.sink.partition_columns) == ("/scores", ("ds",))
    assert str(job.sink) == "/scores (2 partitions by ds: 2012-12-31 to 2013-01-01)"
    assert jobs.loads(jobs.dumps(job)) == job


def test_folders_of_partitions_have_the_order_of_the_columns() -> None:
    job = inference_job(sink=many([{"hour": "T00:00", "ds": "1"}], by=["ds", "hour"]))
    assert job.sink.folders == ["/scores/ds=1/hour=T00%3A00"]


def test_a_range_of_days_knows_the_calendar() -> None:
    found = inference_job(sink=many(days("2023-12-31", "2024-03-01"))).sink.partitions
    assert len(found) == 61 and {"ds": "2024-02-29"} in found and found[-1] == {"ds": "2024-02-29"}
    assert len(inference_job(sink=many(days("2013-01-01", "2014-01-01"))).sink.partitions) == 365


def test_templates_of_partitions_wait_for_their_values() -> None:
    sink = many(days("{{ a }}", "{{ b }}"), by=["{{ 'ds' }}"])
    assert Sink.from_dict(sink.to_dict()) == sink
    assert sink.to_dict()["partitions"] == {"days": ["{{ a }}", "{{ b }}"]}
    listed = many(["{{ a }}", "{{ b }}"], by=["{{ 'ds' }}"])
    assert Sink.from_dict(listed.to_dict()) == listed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sink.parquet("/a", partition_by=["ds"]), "partition_by and partitions belong together"),
        (lambda: Sink.parquet("/a", partitions=["1"]), "partition_by and partitions belong together"),
        (lambda: many(["1"], by="ds"), "belong together, the columns and the values"),
        (lambda: many([]), "partition_by and partitions belong together"),
        (lambda: many("2013-01-01"), "sink partitions must be a list of values, .* found '2013-01-01'"),
        (lambda: many({"ds": ["1"]}), "sink partitions must be a list of values, .* found"),
        (lambda: many({"days": "12"}), "sink partitions must be a list of values, .* found"),
        (lambda: many(["1", "2", "1"]), "name {'ds': '1'} twice"),
        (lambda: many([["1"]]), "'ds' must be a string that is not empty, found .'1'."),
        (lambda: many([{"day": "1"}]), "must have a value for 'ds', as partition_by says; found {'day'"),
        (lambda: many(["1"], by=["ds", "hour"]), "must have a value for 'ds', 'hour'"),
        (lambda: many(["1"], by=["ds", "DS"]), "partition_by names a column twice: 'ds', 'DS'"),
        (lambda: many(days("1", "2"), by=["a", "b"]), "days.. are the values of one column"),
        (lambda: many([str(n) for n in range(10_001)]), "are 10,001, and a job replaces at most 10,000"),
        (lambda: inference_job(sink=many(days("2013-01-02", "2013-01-01"))), "there is no day from 2013-01"),
        (lambda: inference_job(sink=many(days("2013-02-30", "2014-01-01"))), "found '2013-02-30'"),
        (lambda: inference_job(sink=many(days("1913-01-01", "2014-01-01"))), "are 36,890 days, and a job"),
        (lambda: inference_job(sink=many(["1"], uri="s3://lake")), "sink 's3://lake' is a whole bucket"),
        (
            lambda: Sink(uri="/a", partition={"x": "1"}, partition_by=["ds"], partitions=["1"]),
            "partition_by names all of a partition's columns",
        ),
        (
            lambda: Sink.parquet("/a", partition_by=["ds"], partitions=["1"], mode="append"),
            "is for mode='replace' alone; found .* mode='append'",
        ),
        (
            lambda: Sink(kind="delta", uri="/a", partition_by=["ds"], partitions=["1"]),
            "partition_by is for Sink.parquet: a delta sink replaces one partition a job",
        ),
        (
            lambda: inference_job(
                source=Source.kafka("h:1", "t", schema="a INT"),
                sink=many(["1"]),
                stream=StreamOptions(trigger="available_now", checkpoint_uri="/c"),
            ),
            "has partition_by, and a stream writes each of its batches into a folder of its own",
        ),
        (
            lambda: inference_job(
                sink=many(["1"]),
                on_bad_row="quarantine",
                quarantine=Sink.parquet("/bad", partition={"ds": "1"}),
            ),
            "quarantine /bad/ds=1 has partitions of its own, and is written in those of the sink /scores",
        ),
    ],
)
def test_partitions_that_cannot_be_replaced_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidJobError, match=message):
        make()


def test_bad_rows_of_many_partitions_lie_in_the_same_partitions() -> None:
    for quarantine, uri in [(None, "/scores_quarantine"), (Sink.parquet("/bad"), "/bad")]:
        job = inference_job(sink=many(["1", "2"]), on_bad_row="quarantine", quarantine=quarantine)
        assert job.quarantine_sink.folders == [f"{uri}/ds=1", f"{uri}/ds=2"]
        assert job.quarantine_uri == uri
        assert jobs.loads(jobs.dumps(job)).quarantine_sink == job.quarantine_sink
