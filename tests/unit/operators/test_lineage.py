"""The lineage of both operators, with Airflow's OpenLineage provider and its client."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException
from airflow.providers.openlineage.plugins.adapter import OpenLineageAdapter
from airflow.providers.openlineage.plugins.listener import OpenLineageListener
from airflow.sdk import DAG, Connection
from airflow.sdk.api.datamodels._generated import DagRun, DagRunState, DagRunType, TIRunContext
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from openlineage.client import OpenLineageClient
from openlineage.client.transport.file import FileConfig, FileTransport

from airflow_hydrogen import __version__
from airflow_hydrogen.contract.errors import RankFailedError
from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.contract.reports import InferenceReport, TrainReport
from airflow_hydrogen.operators.base import HydrogenOperator
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
from airflow_hydrogen.operators.train import HorovodTrainOperator
from airflow_hydrogen.testing import fake_spark_submit, run_task

VERSION = "3f2a" * 16
SHOP = Connection(
    conn_id="shop", conn_type="postgres", host="db", schema="shop", login="reader", password="hush-hush"
)
STANDALONE = Connection(
    conn_id="spark_default", conn_type="spark", host="spark://master:7077", extra='{"deploy-mode": "cluster"}'
)


def training(**arguments: Any) -> HorovodTrainOperator:
    defaults: dict[str, Any] = {
        "entrypoint": "json:loads",
        "np": 2,
        "model_uri": "s3://models/{{ run_id }}",
        "train_data": Source.delta("s3://lake/orders", columns=["a", "b"]),
    }
    with DAG("flights"):
        return HorovodTrainOperator(task_id="train", **{**defaults, **arguments})


def scoring(**arguments: Any) -> ArrowInferenceOperator:
    defaults: dict[str, Any] = {
        "model_uri": "/models/late",
        "source": Source.parquet("/lake/flights/ds={{ ds }}"),
        "sink": Sink.parquet("/scored", partition={"ds": "{{ ds }}"}),
    }
    with DAG("flights"):
        return ArrowInferenceOperator(task_id="score", **{**defaults, **arguments})


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a task, tells the provider's listener of its end, and answers with the event in its file."""
    file = tmp_path / "events.json"
    transport = FileTransport(FileConfig(log_file_path=str(file), append=True))
    listener = OpenLineageListener()
    listener.adapter = OpenLineageAdapter(OpenLineageClient(transport=transport))
    # It forks, so that a server of lineage that hangs does not hold up the task.
    monkeypatch.setattr(listener, "_execute", lambda emit, name, use_fork=False: emit())

    def run(task: HydrogenOperator, report: Any, **fake: Any) -> Any:
        with fake_spark_submit(report, **fake):
            try:
                run_task(task, ds="2013-01-02")
            except AirflowException as error:
                listener.on_task_instance_failed(None, instance_of(task), error)
            else:
                listener.on_task_instance_success(None, instance_of(task))
        return json.loads(file.read_text().splitlines()[-1])

    return run


def instance_of(task: HydrogenOperator) -> RuntimeTaskInstance:
    """The task instance as Airflow's task runner has it."""
    day = datetime(2013, 1, 2, tzinfo=timezone.utc)
    run = DagRun(
        dag_id=task.dag_id,
        run_id="test_run",
        logical_date=day,
        data_interval_start=day,
        data_interval_end=day,
        run_after=day,
        start_date=day,
        end_date=None,
        run_type=DagRunType.MANUAL,
        state=DagRunState.RUNNING,
        consumed_asset_events=[],
        partition_key=None,
    )
    instance = RuntimeTaskInstance.model_construct(
        id=uuid.uuid4(),
        dag_version_id=uuid.uuid4(),
        dag_id=task.dag_id,
        task_id=task.task_id,
        run_id=run.run_id,
        try_number=1,
        map_index=-1,
        task=task,
        start_date=day,
        max_tries=0,
    )
    instance._ti_context_from_server = TIRunContext(dag_run=run, max_tries=0)
    return instance


def place(dataset: Mapping[str, Any]) -> tuple[str, str]:
    return dataset["namespace"], dataset["name"]


def values(facet: Mapping[str, Any]) -> dict[str, Any]:
    """What a facet says, besides who says it."""
    return {name: value for name, value in facet.items() if not name.startswith("_")}


def test_a_training_reads_its_datasets_and_writes_a_model(events: Any) -> None:
    report = TrainReport(
        model_uri="s3://models/test_run",
        model_version=VERSION,
        np=2,
        epochs=3,
        metrics={"loss": 0.5},
        rows=900,
        sources={"train": {"source": "delta 's3://lake/orders'", "version": 812}},
    )
    event = events(training(), report)
    assert (event["eventType"], event["job"]["name"]) == ("COMPLETE", "flights.train")
    (orders,), (model,) = event["inputs"], event["outputs"]
    assert place(orders) == ("s3://lake", "orders")
    assert values(orders["facets"]["version"]) == {"datasetVersion": "812"}
    assert [field["name"] for field in orders["facets"]["schema"]["fields"]] == ["a", "b"]
    assert values(orders["inputFacets"]["inputStatistics"]) == {"rowCount": 900}
    assert place(model) == ("s3://models", "test_run")
    assert values(model["facets"]["version"]) == {"datasetVersion": VERSION}
    assert values(model["facets"]["datasetType"]) == {"datasetType": "MODEL"}
    told = event["run"]["facets"]["airflow_hydrogen_training"]
    assert (told["np"], told["epochs"], told["metrics"]) == (2, 3, {"loss": 0.5})
    assert told["_producer"] == f"urn:airflow-hydrogen:{__version__}"


def test_a_scoring_reads_rows_and_a_model_and_writes_a_partition(events: Any) -> None:
    report = InferenceReport(
        output_uri="/scored/ds=2013-01-02",
        model_uri="/models/late",
        model_version=VERSION,
        rows=994,
        rows_in=1000,
        rows_quarantined=6,
        bad_rows={"column 'temp': null": 6},
        quarantine_uri="/scored_quarantine/ds=2013-01-02",
        columns={"flight": "int", "late": "float"},
        source={"source": "parquet", "files": 3, "bytes": 4096, "digest": "ab12"},
    )
    event = events(scoring(on_bad_row="quarantine"), report)
    (flights, model), (scored, bad) = event["inputs"], event["outputs"]
    assert place(flights) == ("file", "/lake/flights")
    assert values(flights["facets"]["version"]) == {"datasetVersion": "ab12"}
    expected = {"rowCount": 1000, "size": 4096, "fileCount": 3}
    assert values(flights["inputFacets"]["inputStatistics"]) == expected
    day = [{"dimensions": {"ds": "2013-01-02"}}]
    assert flights["inputFacets"]["subset"]["inputCondition"]["partitions"] == day
    assert place(model) == ("file", "/models/late")
    assert values(model["facets"]["version"]) == {"datasetVersion": VERSION}
    assert place(scored) == ("file", "/scored")
    assert values(scored["outputFacets"]["outputStatistics"]) == {"rowCount": 994}
    assert scored["outputFacets"]["subset"]["outputCondition"]["partitions"] == day
    columns = [(field["name"], field.get("type")) for field in scored["facets"]["schema"]["fields"]]
    assert columns == [("flight", "int"), ("late", "float"), ("ds", None)]
    assert place(bad) == ("file", "/scored_quarantine")
    assert values(bad["outputFacets"]["outputStatistics"]) == {"rowCount": 6}
    told = event["run"]["facets"]["airflow_hydrogen_scoring"]
    assert [told[name] for name in ("rowsIn", "rowsOut", "rowsDropped", "rowsQuarantined")] == [
        1000,
        994,
        0,
        6,
    ]
    assert told["badRows"] == {"column 'temp': null": 6}


def test_the_model_that_scored_is_named_and_not_its_alias(events: Any) -> None:
    report = InferenceReport(
        output_uri="/scored/ds=2013-01-02",
        model_uri="/models/r1",
        model_version=VERSION,
        model_alias="/models/production.alias",
        source={"source": "parquet"},
    )
    _flights, model = events(scoring(model_uri="/models/production.alias"), report)["inputs"]
    assert place(model) == ("file", "/models/r1")
    assert values(model["facets"]["version"]) == {"datasetVersion": VERSION}
    [flights] = events(scoring(model_uri="/models/production.alias"), RuntimeError("lost"))["inputs"]
    assert place(flights) == ("file", "/lake/flights"), "nobody has said which model it would have been"


def test_a_failure_names_what_was_to_be_read_and_the_error(events: Any) -> None:
    lost = RankFailedError(1, "b", "ValueError: no such column")
    event = events(training(), lost)
    assert event["eventType"] == "FAIL"
    assert [place(dataset) for dataset in event["inputs"]] == [("s3://lake", "orders")]
    assert "version" not in event["inputs"][0]["facets"]
    assert [place(dataset) for dataset in event["outputs"]] == [("s3://models", "test_run")]
    assert "no such column" in event["run"]["facets"]["errorMessage"]["message"]
    assert "airflow_hydrogen_training" not in event["run"]["facets"]


def test_a_retry_that_fails_does_not_repeat_the_try_before(events: Any) -> None:
    task = scoring()
    assert "outputStatistics" in events(task, InferenceReport(rows=3))["outputs"][0]["outputFacets"]
    failed = events(task, RuntimeError("lost"))
    assert failed["eventType"] == "FAIL"
    assert "outputStatistics" not in failed["outputs"][0]["outputFacets"]


def test_a_query_reads_all_of_its_tables(events: Any) -> None:
    query = (
        "with late as (select * from flights where ds < :day) "
        "select * from late join planes using (tailnum) join ice.ref.airports using (code) "
        "join shop using (id)"
    )
    source = Source.sql(
        query,
        query_args={"day": "2013-01-01"},
        flights=Source.delta("s3a://lake/flights"),
        shop=Source.jdbc("shop", table="orders"),
    )
    snapshot = {"tables": {"flights": {"version": 7}, "shop": {"rows": 12}}, "digest": "ab"}
    event = events(
        training(train_data=source, conf={"spark.sql.catalog.ice.uri": "https://rest:8181"}),
        TrainReport(model_uri="s3://models/test_run", rows=5, sources={"train": snapshot}),
        connections=[SHOP],
    )
    assert [place(dataset) for dataset in event["inputs"]] == [
        ("s3://lake", "flights"),
        ("postgres://db:5432", "shop.public.orders"),
        ("spark", "spark_catalog.default.planes"),
        ("https://rest:8181", "ref.airports"),
    ]
    assert values(event["inputs"][0]["facets"]["version"]) == {"datasetVersion": "7"}
    assert values(event["inputs"][1]["inputFacets"]["inputStatistics"]) == {"rowCount": 12}
    assert values(event["job"]["facets"]["sql"]) == {"query": query}


def test_a_query_that_a_database_runs_reads_its_tables(events: Any) -> None:
    source = Source.jdbc("shop", query="select * from sales.orders join people using (id)")
    event = events(scoring(source=source), InferenceReport(source={"rows": 9}), connections=[SHOP])
    assert [place(dataset) for dataset in event["inputs"]] == [
        ("postgres://db:5432", "shop.public.people"),
        ("postgres://db:5432", "shop.sales.orders"),
        ("file", "/models/late"),
    ]
    assert not event["inputs"][0]["inputFacets"]
    text = json.dumps(event)
    assert "hush-hush" not in text
    assert "reader" not in text


def test_parts_of_one_table_are_one_dataset(events: Any) -> None:
    report = TrainReport(
        model_uri="s3://models/test_run",
        sources={
            "train": {"files": 3, "bytes": 30, "digest": "ab"},
            "validation": {"files": 1, "bytes": 10, "digest": "cd"},
        },
    )
    task = training(
        train_data=Source.parquet("/lake/f/split=train", columns=["x", "y"]),
        validation_data=Source.parquet("/lake/f/split=test", columns=["y", "z"]),
    )
    (dataset,) = events(task, report)["inputs"]
    assert place(dataset) == ("file", "/lake/f")
    assert values(dataset["inputFacets"]["inputStatistics"]) == {"size": 40, "fileCount": 4}
    assert [field["name"] for field in dataset["facets"]["schema"]["fields"]] == ["x", "y", "z"]
    parts = dataset["inputFacets"]["subset"]["inputCondition"]["partitions"]
    assert [part["dimensions"] for part in parts] == [{"split": "train"}, {"split": "test"}]
    assert "version" not in dataset["facets"]


def test_a_job_of_many_partitions_names_each_of_them(events: Any) -> None:
    sink = Sink.parquet("/scored", partition_by=["ds"], partitions=["2013-01-01", "2013-01-02"])
    report = InferenceReport(
        output_uri="/scored", model_uri="/models/late", rows=3, columns={"late": "float"}
    )
    scored, bad = events(scoring(sink=sink, on_bad_row="quarantine"), report)["outputs"]
    days = [{"dimensions": {"ds": "2013-01-01"}}, {"dimensions": {"ds": "2013-01-02"}}]
    for output in (scored, bad):
        assert output["outputFacets"]["subset"]["outputCondition"]["partitions"] == days
    assert (place(scored), place(bad)) == (("file", "/scored"), ("file", "/scored_quarantine"))
    assert [field["name"] for field in scored["facets"]["schema"]["fields"]] == ["late", "ds"]


def test_rows_that_a_function_made_are_not_those_of_the_source(events: Any) -> None:
    task = scoring(prepare="json:loads")
    event = events(task, InferenceReport(rows=10, rows_in=10))
    assert "inputStatistics" not in event["inputs"][0]["inputFacets"]
    assert values(event["outputs"][0]["outputFacets"]["outputStatistics"]) == {"rowCount": 10}


def test_a_training_without_a_model_writes_nothing(events: Any) -> None:
    assert events(training(), TrainReport(result=0.9, np=2))["outputs"] == []


def test_a_source_without_a_connection_leaves_the_others_in_the_lineage(events: Any) -> None:
    task = training(validation_data=Source.jdbc("nowhere", table="orders"))
    event = events(task, None)
    assert "nowhere" in event["run"]["facets"]["errorMessage"]["message"]
    assert [place(dataset) for dataset in event["inputs"]] == [("s3://lake", "orders")]


def test_a_deferred_task_has_the_report_in_the_process_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_on: list[HydrogenOperator] = []
    real = HydrogenOperator.execute_complete

    def execute_complete(task: HydrogenOperator, context: Any, event: Any) -> Any:
        went_on.append(task)
        return real(task, context, event)

    monkeypatch.setattr(HydrogenOperator, "execute_complete", execute_complete)
    task = scoring(sink=Sink.parquet(str(tmp_path / "scored")), deferrable=True)
    with fake_spark_submit(InferenceReport(rows=3), connection=STANDALONE):
        run_task(task, ds="2013-01-02")
    assert went_on[0] is not task
    (scored,) = went_on[0].get_openlineage_facets_on_complete(None).outputs
    assert scored.outputFacets["outputStatistics"].rowCount == 3
