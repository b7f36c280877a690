"""ArrowInferenceOperator: what it submits, and what it makes of the answer."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import airflow.sdk
import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.sdk import DAG, Asset, AssetAlias, Connection

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    HydrogenError,
    NotAModelError,
    StoreRefusedError,
    StoreUnreachableError,
)
from airflow_hydrogen.contract.jobs import Run, Sink, Source, days
from airflow_hydrogen.contract.reports import InferenceReport
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.contract.streams import StreamOptions
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
from airflow_hydrogen.testing import fake_spark_submit, run_task


def operator(**arguments: Any) -> ArrowInferenceOperator:
    defaults: dict[str, Any] = {
        "model_uri": "/models/{{ run_id }}",
        "source": Source.parquet("/lake/ds={{ ds }}"),
        "sink": Sink.parquet("/scored", partition={"ds": "{{ ds }}"}),
    }
    return ArrowInferenceOperator(task_id="score", **{**defaults, **arguments})


@pytest.mark.parametrize(
    ("place", "servers", "conn_id"),
    [("{{ 'a:1,b:2' }}", "a:1,b:2", None), ("{{ 'events' if 1 else 'a:1' }}", None, "events")],
)
def test_servers_are_told_from_a_connection_when_templates_are_rendered(place, servers, conn_id) -> None:
    task = operator(
        source=Source.kafka(place, "in", schema="a INT"),
        sink=Sink.kafka(place, "out"),
        trigger="available_now",
        checkpoint_uri="/lake/checkpoint",
    )
    connection = Connection(conn_id="events", conn_type="kafka", extra='{"bootstrap.servers": "c:3"}')
    with fake_spark_submit(connections=[connection]) as submissions:
        run_task(task)
    job = submissions[0].job
    assert {(side.servers, side.conn_id) for side in (job.source, job.sink)} == {(servers, conn_id)}


def test_job_holds_the_rendered_arguments() -> None:
    task = operator(
        keep_columns=["{{ 'a' }}"],
        output_columns={"delay": "{{ 'predicted' }}"},
        batch_rows="{{ 512 }}",
        prepare_kwargs={"day": "{{ ds }}"},
    )
    with fake_spark_submit() as submissions:
        ran = run_task(task, ds="2013-01-02")
    job = submissions[0].job
    assert job.model_uri == "/models/test_run"
    assert (job.source.uri, job.sink.partition) == ("/lake/ds=2013-01-02", {"ds": "2013-01-02"})
    assert (list(job.keep_columns), job.batch_rows) == (["a"], 512)
    assert job.output_columns == {"delay": "predicted"}
    assert job.prepare_kwargs == {"day": "2013-01-02"}
    assert ran.return_value == "/scored/ds=2013-01-02"


def test_gpus_of_a_task_are_asked_of_spark_and_said_to_the_job() -> None:
    cluster = Connection(conn_id="spark_default", conn_type="spark", host="spark://m", port=7077)
    with fake_spark_submit(connection=cluster) as submissions:
        run_task(operator(gpus_per_task="{{ 0.5 }}", conf={"spark.executor.memory": "2g"}), ds="1")
    assert submissions[0].job.gpus_per_task == 0.5
    conf = submissions[0].conf
    assert conf["spark.executor.resource.gpu.amount"] == "1"
    assert conf["spark.executor.cores"] == "2"
    assert "spark.task.resource.gpu.amount" not in conf


def test_gpus_that_no_task_can_have_are_found_when_the_dag_is_read() -> None:
    with pytest.raises(HydrogenError, match="gpus_per_task below 1 must be 1/n"):
        operator(gpus_per_task=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpus_per_task": "{{ -1 }}"}, "gpus_per_task must be a number of GPUs, 0 or more"),
        ({"gpus_per_task": 1}, r"gpus_per_task=1, but master 'local\[\*\]' schedules no GPUs"),
    ],
)
def test_gpus_that_nobody_can_give_fail_before_anything_is_submitted(
    arguments: dict[str, Any], message: str
) -> None:
    with fake_spark_submit() as submissions, pytest.raises(AirflowFailException, match=message):
        run_task(operator(**arguments), ds="1")
    assert submissions == []


def test_native_rendering_keeps_the_text_of_a_partition() -> None:
    dag = DAG("flights", render_template_as_native_obj=True)
    partition = {"ds": "{{ ds_nodash }}", "month": "{{ '2024_01' }}", "hour": "{{ '00' }}"}
    task = operator(
        dag=dag,
        source=Source.parquet("/lake/ds={{ ds_nodash }}"),
        sink=Sink.parquet("/scored", partition=partition),
        keep_columns=["{{ '1' }}"],
        output_columns={"delay": "{{ '2' }}"},
        batch_rows="{{ 512 }}",
    )
    with fake_spark_submit() as submissions:
        ran = run_task(task, ds_nodash="20240102")
    job = submissions[0].job
    assert job.sink.partition == {"ds": "20240102", "month": "2024_01", "hour": "00"}
    assert (list(job.keep_columns), job.output_columns, job.batch_rows) == (["1"], {"delay": "2"}, 512)
    assert ran.return_value == "/scored/ds=20240102/month=2024_01/hour=00"


def test_partition_of_another_task_may_be_a_number_or_a_date() -> None:
    dag = DAG("flights", render_template_as_native_obj=True)
    given = {"uri": "/scored", "partition": {"ds": datetime.date(2024, 1, 2), "hour": 5}}
    with fake_spark_submit() as submissions:
        run_task(operator(dag=dag, sink="{{ params.sink }}"), params={"sink": given}, ds="1")
    assert submissions[0].job.sink.partition == {"ds": "2024-01-02", "hour": "5"}


def test_mapped_tasks_keep_the_text_of_a_partition() -> None:
    with DAG("flights", render_template_as_native_obj=True):
        mapped = ArrowInferenceOperator.partial(
            task_id="score", model_uri="/m", source=Source.parquet("/lake").to_dict()
        ).expand(sink=[Sink.parquet("/scored", partition={"ds": "{{ ds_nodash }}"}).to_dict()])
    task = mapped.unmap({"sink": Sink.parquet("/scored", partition={"ds": "{{ ds_nodash }}"}).to_dict()})
    with fake_spark_submit() as submissions:
        run_task(task, ds_nodash="20240102", map_index=0)
    assert submissions[0].job.sink.partition == {"ds": "20240102"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"source": Source.parquet("lake:{{ ds }}")},
            "source uri 'lake:1' can be read as a URI and as a path",
        ),
        (
            {"source": Source.csv("file://host/lake")},
            "source uri 'file://host/lake' is a file of host 'host'",
        ),
        (
            {"source": Source.sql("select 1", t=Source.parquet("s3:///lake"))},
            "source table 't' uri 's3:///lake' names no bucket",
        ),
        ({"sink": Sink.parquet("scored:x")}, "sink uri 'scored:x' can be read as a URI and as a path"),
    ],
)
def test_what_names_no_place_is_found_before_submission(arguments: dict[str, Any], message: str) -> None:
    with fake_spark_submit() as submissions, pytest.raises(AirflowFailException, match=f"^{message}"):
        run_task(operator(**arguments), ds="1")
    assert submissions == []


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(("limit", "expected"), [("0.01", 0.01), ("100", 100), ("1e-3", 0.001)])
def test_bad_rows_are_a_matter_of_templates_too(native: bool, limit: str, expected: float) -> None:
    dag = DAG("flights", render_template_as_native_obj=native)
    task = operator(
        dag=dag,
        on_bad_row="{{ 'quarantine' }}",
        quarantine=Sink.parquet("/bad/{{ ds_nodash }}"),
        max_bad_rows=f"{{{{ '{limit}' }}}}",
    )
    with fake_spark_submit() as submissions:
        run_task(task, ds="2013-01-02", ds_nodash="20130102")
    job = submissions[0].job
    assert (job.on_bad_row, job.max_bad_rows) == ("quarantine", expected)
    assert job.quarantine_sink == Sink.parquet("/bad/20130102", partition={"ds": "2013-01-02"})


def test_counts_of_bad_rows_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    scores = Asset("scores")
    report = InferenceReport(
        output_uri="/scored/ds=1",
        rows=900,
        rows_in=1000,
        rows_quarantined=100,
        quarantine_uri="/scored_quarantine/ds=1",
        bad_rows={"column 'a': null": 100},
        seconds={"total": 3.0},
    )
    with fake_spark_submit(report):
        ran = run_task(operator(outlets=[scores], on_bad_row="quarantine"), ds="1")
    assert ran.xcoms["report"]["bad_rows"] == {"column 'a': null": 100}
    extra = ran.outlet_extra[scores]
    counts = ("rows", "rows_in", "rows_dropped", "rows_quarantined")
    assert [extra[name] for name in counts] == [900, 1000, 0, 100]
    assert extra["quarantine_uri"] == "/scored_quarantine/ds=1"
    told = "Scored 900 rows of 1,000, 100 quarantined in /scored_quarantine/ds=1, in 3.0 s: /scored/ds=1"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["prepare", "predictor"])
def test_functions_are_given_by_their_import_path(argument: str) -> None:
    message = rf"{argument} must be 'package.module:function', found the callable {__name__}:operator: it is"
    with pytest.raises(TypeError, match=message):
        operator(**{argument: operator})


@pytest.mark.parametrize(
    ("output_uri", "asset"),
    [
        ("/scored/ds=1", "file:///scored/ds=1"),
        ("s3a://lake/scored/ds=1/", "s3://lake/scored/ds=1"),
        ("hdfs://nn/scored/a#b c", "hdfs://nn/scored/a%23b%20c"),
    ],
)
def test_alias_stands_for_the_partition_that_was_written(output_uri: str, asset: str) -> None:
    with fake_spark_submit(InferenceReport(output_uri=output_uri, model_uri="/m", rows=3)):
        ran = run_task(operator(outlets=[AssetAlias("scores")]), ds="1")
    assert list(ran.alias_events["scores"]) == [asset]
    extra = ran.alias_events["scores"][asset]
    assert (extra["output_uri"], extra["rows"], extra["run"]["task_id"]) == (output_uri, 3, "score")


def test_report_becomes_xcoms_and_asset_events(capsys: pytest.CaptureFixture[str]) -> None:
    scores = Asset("scores")
    report = InferenceReport(
        output_uri="/scored/ds=1",
        model_uri="/m",
        model_version="3f2a" * 16,
        model_alias="/production.alias",
        rows=900,
        seconds={"total": 3.0},
        rows_per_second=300.0,
        source={"source": "delta '/orders'", "version": 812},
    )
    with fake_spark_submit(report):
        ran = run_task(operator(outlets=[scores]), ds="1")
    assert ran.return_value == "/scored/ds=1"
    assert ran.xcoms["report"]["rows"] == 900
    assert ran.xcoms["_link_scores"] == "file:///scored/ds=1"
    extra = ran.outlet_extra[scores]
    assert (extra["output_uri"], extra["model_uri"], extra["rows"]) == ("/scored/ds=1", "/m", 900)
    assert (extra["source"], extra["model_version"]) == (report.source, report.model_version)
    assert extra["model_alias"] == ran.xcoms["report"]["model_alias"] == "/production.alias"
    log = capsys.readouterr().out
    assert "Scoring on local[*]: model /models/test_run, source parquet '/lake/ds=1', output" in log
    assert "Scored 900 rows in 3.0 s, 300 rows/s, from delta '/orders' at version 812 by model 3f2a" in log


def test_shared_report_lies_beside_the_table_and_not_in_it(tmp_path: Path) -> None:
    connection = Connection(
        conn_id="spark_default", conn_type="spark", host="yarn", extra='{"deploy-mode": "cluster"}'
    )
    sink = Sink.parquet(f"{tmp_path}/scored/", partition={"ds": "1"})
    with fake_spark_submit(connection=connection) as submissions:
        run_task(operator(sink=sink, durable=False), ds="1")
    assert submissions[0].job.report_uri.startswith(f"{tmp_path}/scored.report-")


@pytest.mark.parametrize("uri", ["s3://lake", "hdfs:/"])
def test_shared_report_of_a_table_that_is_a_whole_bucket_lies_in_that_bucket(uri: str) -> None:
    base = uris.canonical(uri).rstrip("/")
    task = operator(sink=Sink.parquet(uri, partition={"ds": "1"}))
    report_uri = task._shared_report_uri(Run(dag_id="d", task_id="t", run_id="r"))
    assert uris.parse(report_uri).path.startswith("/.report-")
    assert uris.parse(report_uri).authority == uris.parse(uri).authority
    assert report_uri.startswith(base)


def test_output_is_named_as_spark_names_it() -> None:
    task = operator(sink=Sink.parquet("s3a://lake/t/", partition={"hour": "T00:00"}))
    assert task.output_location == "s3a://lake/t/hour=T00%3A00"


def test_failure_that_a_retry_cannot_mend() -> None:
    with (
        fake_spark_submit(NotAModelError("/m")),
        pytest.raises(
            AirflowFailException, match="NotAModelError: '/m' is not a model: it holds no manifest"
        ),
    ):
        run_task(operator(), ds="1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "jax"}, r"engine must be one of 'auto', 'tensorflow', 'onnx', 'torch', found 'jax'"),
        ({"batch_rows": 0}, r"batch_rows must be at least 1, found 0"),
        (
            {"max_bad_rows": 5},
            r"max_bad_rows says how many bad rows there may be, and with on_bad_row='fail'",
        ),
        (
            {"on_bad_row": "drop", "max_bad_rows": "1%"},
            r"max_bad_rows must be a number of rows or a share .*, such as 100 or 0.01, found '1%'",
        ),
        ({"on_bad_row": "ignore"}, r"on_bad_row must be one of 'fail', 'drop', 'quarantine', found 'ignore'"),
        (
            {"on_bad_row": "quarantine", "quarantine": "/bad"},
            r"quarantine must be a Sink, such as Sink.parquet\(uri\).*found '/bad'",
        ),
        ({"batch_rows": True}, r"batch_rows must be an integer or 'auto', found True"),
        ({"batch_rows": "many"}, r"batch_rows must be an integer or 'auto', found 'many'"),
        ({"model_uri": ""}, r"model_uri must be a URI or a path, found ''"),
        ({"source": None}, r"source must be a Source, such as Source.parquet\(uri\).*found None"),
        ({"sink": "/scored"}, r"sink must be a Sink, such as Sink.parquet\(uri\).*found '/scored'"),
        ({"sink": {"url": "x"}}, r"sink: Sink has no url; expected kind, uri, table_name"),
        ({"sink": {"uri": "/s", "partition": {"ds": ""}}}, r"sink: sink partition 'ds' must be a string"),
        ({"keep_columns": "a"}, r"keep_columns must be a list of strings, found 'a'"),
        ({"output_columns": {"p": None}}, r"output_columns\['p'\] must be a string, found None"),
        (
            {"sink": {"uri": "/s", "partition": {"ds": None}}},
            r"sink partition 'ds' must be a string, found None; a template of a DAG with render",
        ),
        (
            {"predictor": "flno.such:load"},
            r"predictor 'flno.such:load' does not import: no module 'flno.such'",
        ),
        ({"checkpoint_uri": "/c"}, r"checkpoint_uri belong to a stream, which needs a trigger"),
        ({"trigger": "available_now"}, r"checkpoint_uri must be a URI or a path, found None"),
        ({"trigger": "now", "checkpoint_uri": "/c"}, r"trigger must be 'available_now' or an interval"),
        (
            {"trigger": "available_now", "checkpoint_uri": "/c", "stop_after_s": "soon"},
            r"stop_after_s must be a number of seconds, found 'soon'",
        ),
        ({"predictor": "load"}, r"predictor must have the form 'package.module:function', found 'load'"),
    ],
)
def test_bad_input_fails_without_retry_before_submission(arguments: dict[str, Any], message: str) -> None:
    with fake_spark_submit() as submissions, pytest.raises(AirflowFailException, match=message):
        run_task(operator(**arguments), ds="1")
    assert submissions == []


def test_sources_bring_what_spark_needs_to_read_them(capsys: Any) -> None:
    shop = Connection(
        conn_id="shop", conn_type="postgres", host="db", schema="s", login="me", password="hush"
    )
    source = Source.sql(
        "select * from o join f using (id)",
        o=Source.jdbc("{{ 'shop' }}", table="orders", partition_column="id", partitions="{{ 4 }}"),
        f=Source.delta("/lake/{{ ds }}", version="{{ 8 }}", columns=["{{ 'id' }}"]),
    )
    task = operator(source=source, packages="a:b:1", conf={"spark.sql.extensions": "x.Y"})
    with fake_spark_submit(connections=[shop]) as submissions:
        ran = run_task(task, ds="1")
    job, command = submissions[0].job, " ".join(submissions[0].command)
    assert job.access == {
        "shop": {
            "url": "jdbc:postgresql://db:5432/s",
            "driver": "org.postgresql.Driver",
            "user": "me",
            "password": "hush",
        }
    }
    orders, flights = job.source.tables["o"], job.source.tables["f"]
    assert (orders.conn_id, orders.partitions) == ("shop", 4)
    assert (flights.uri, flights.version, flights.columns) == ("/lake/1", 8, ("id",))
    packages = submissions[0].option("--packages").split(",")
    assert packages[0] == "a:b:1"
    assert [package.rpartition(":")[0] for package in packages[1:]] == [
        "org.postgresql:postgresql",
        "io.delta:delta-spark_4.2_2.13",
    ]
    assert "spark.sql.extensions=x.Y,io.delta.sql.DeltaSparkSessionExtension" in command
    log = capsys.readouterr().out
    assert "Adding for sources and sink: org.postgresql:postgresql:" in log
    assert "hush" not in "".join([command, log, repr(job), repr(ran.xcoms), repr(ran.outlet_extra)])


def test_a_sink_in_a_database_brings_its_driver_and_opens_its_connection(capsys: Any) -> None:
    shop = Connection(conn_id="shop", conn_type="mariadb", host="db", schema="s", login="me", password="hush")
    sink = Sink.jdbc(
        "{{ 'shop' }}", table="scores_{{ ds_nodash }}", partition={"ds": "{{ ds }}"}, mode="append"
    )
    with fake_spark_submit(connections=[shop]) as submissions:
        ran = run_task(operator(sink=sink), ds="2013-01-02", ds_nodash="20130102")
    [submission] = submissions
    assert submission.job.access == {
        "shop": {
            "url": "jdbc:mysql://db:3306/s?permitMysqlScheme",
            "driver": "org.mariadb.jdbc.Driver",
            "user": "me",
            "password": "hush",
        }
    }
    assert (submission.job.sink.table_name, submission.job.sink.conn_id) == ("scores_20130102", "shop")
    assert submission.option("--packages").startswith("org.mariadb.jdbc:mariadb-java-client:")
    assert ran.return_value == "scores_20130102"
    told = [*submission.command, capsys.readouterr().out, repr(submission.job), repr(ran.xcoms)]
    assert "hush" not in "".join(told)


def test_a_sink_brings_what_spark_needs_to_write_it() -> None:
    sink = Sink.delta("/scored/{{ ds }}", mode="merge", keys=["{{ 'id' }}"])
    with fake_spark_submit() as submissions:
        run_task(operator(sink=sink), ds="1")
    assert submissions[0].option("--packages").startswith("io.delta:delta-spark_4.2_2.13:")
    command = " ".join(submissions[0].command)
    assert "spark.sql.extensions=io.delta.sql.DeltaSparkSessionExtension" in command
    assert "spark.sql.catalog.spark_catalog=org.apache.spark.sql.delta.catalog.DeltaCatalog" in command
    found = submissions[0].job.sink
    assert (found.uri, found.mode, found.keys) == ("/scored/1", "merge", ("id",))


def test_a_table_of_hive_is_written_by_a_spark_that_knows_its_metastore(tmp_path: Any) -> None:
    sink = Sink.hive("lake.{{ 'scores' }}", partition={"ds": "{{ ds }}"}, work_uri=str(tmp_path))
    conf = {"spark.hadoop.hive.metastore.uris": "thrift://metastore:9083"}
    with fake_spark_submit() as submissions:
        run_task(operator(sink=sink, conf=conf), ds="1")
    command = " ".join(submissions[0].command)
    assert submissions[0].option("--packages") is None
    assert "spark.sql.catalogImplementation=hive" in command and "thrift://metastore:9083" in command
    found = submissions[0].job.sink
    assert (found.table_name, dict(found.partition)) == ("lake.scores", {"ds": "1"})
    assert submissions[0].job.spark_log_uri.startswith(f"{tmp_path.parent}/.{tmp_path.name}.spark-")


def test_a_stream_has_its_arguments_rendered_and_its_connection_opened(capsys: Any) -> None:
    login = {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "me"}
    extra = {"bootstrap.servers": "broker:9092", **login, "sasl.password": "hush"}
    events = Connection(conn_id="events", conn_type="kafka", extra=json.dumps(extra))
    task = operator(
        source=Source.kafka("{{ 'events' }}", "{{ 'topic' }}", payload="avro", schema='{"fields": []}'),
        sink=Sink.parquet("/lake/scores"),
        trigger="{{ 'available_now' }}",
        checkpoint_uri="/lake/{{ 'checkpoint' }}",
        max_rows_per_trigger="{{ 1000 }}",
        stop_after_s="{{ 60 }}",
    )
    with fake_spark_submit(connections=[events]) as submissions:
        ran = run_task(task, ds="1")
    job, command = submissions[0].job, " ".join(submissions[0].command)
    assert job.stream == StreamOptions(
        trigger="available_now",
        checkpoint_uri="/lake/checkpoint",
        max_rows_per_trigger=1000,
        stop_after_s=60.0,
    )
    assert (job.source.conn_id, job.source.topic) == ("events", "topic")
    assert 'username="me" password="hush"' in job.access["events"]["kafka.sasl.jaas.config"]
    packages = [package.rpartition(":")[0] for package in submissions[0].option("--packages").split(",")]
    assert packages == ["org.apache.spark:spark-sql-kafka-0-10_2.13", "org.apache.spark:spark-avro_2.13"]
    log = capsys.readouterr().out
    assert "hush" not in "".join([command, log, repr(job), repr(ran.xcoms), repr(ran.outlet_extra)])


def test_packages_and_jars_in_conf_stay_where_sources_bring_their_own() -> None:
    conf = {"spark.jars.packages": "a:b:1, c:d:2", "spark.jars": "/e.jar"}
    with fake_spark_submit() as submissions:
        run_task(operator(source=Source.delta("/lake"), conf=conf), ds="1")
    packages = submissions[0].option("--packages").split(",")
    assert packages[:2] == ["a:b:1", "c:d:2"] and packages[2].startswith("io.delta:")
    assert submissions[0].option("--jars") == "/e.jar"


def test_a_database_that_no_connection_names_is_found_before_submission() -> None:
    for place in ({"source": Source.jdbc("nix", table="t")}, {"sink": Sink.jdbc("nix", table="t")}):
        missing = pytest.raises(AirflowFailException, match="'nix', which is not")
        with fake_spark_submit() as submissions, missing:
            run_task(operator(**place), ds="1")
        assert submissions == []


def test_jars_come_from_a_folder_where_there_is_no_network(tmp_path: Any) -> None:
    for name in ("delta-spark_4.2_2.13-4.4.0", "delta-storage-4.4.0"):
        (tmp_path / f"{name}.jar").touch()
    spark = Connection(
        conn_id="spark_default",
        conn_type="spark",
        host="local[2]",
        extra=json.dumps({"jars-folder": str(tmp_path)}),
    )
    with fake_spark_submit(connection=spark) as submissions:
        run_task(operator(source=Source.delta("/lake"), jars="/own.jar"), ds="1")
    assert submissions[0].option("--packages") is None
    assert [jar.rpartition("/")[2] for jar in submissions[0].option("--jars").split(",")] == [
        "own.jar",
        "delta-spark_4.2_2.13-4.4.0.jar",
        "delta-storage-4.4.0.jar",
    ]


def lake(**fields: Any) -> Connection:
    given = {"login": "AKIA", "password": "hush", "extra": '{"endpoint_url": "http://store:7070"}', **fields}
    return Connection(conn_id="lake", conn_type="aws", **given)


def test_one_connection_to_s3_travels_in_the_job_and_is_seen_nowhere(capsys: Any) -> None:
    shop = Connection(conn_id="shop", conn_type="postgres", host="db", schema="s", login="me", password="pst")
    task = operator(
        source=Source.sql(
            "select * from o join f using (id)",
            o=Source.jdbc("shop", table="orders"),
            f=Source.delta("s3://lake/flights"),
        ),
        sink=Sink.parquet("s3://lake/scored"),
        aws_conn_id="{{ 'lake' }}",
    )
    with fake_spark_submit(connections=[shop, lake()]) as submissions:
        ran = run_task(task, ds="1")
    [submission] = submissions
    assert submission.job.s3 == S3Access(
        conn_id="lake", access_key="AKIA", secret_key="hush", endpoint_url="http://store:7070"
    )
    assert submission.job.access["shop"]["password"] == "pst"
    packages = [name.rpartition(":")[0] for name in submission.option("--packages").split(",")]
    assert packages == [
        "org.postgresql:postgresql",
        "io.delta:delta-spark_4.2_2.13",
        "org.apache.hadoop:hadoop-aws",
    ]
    shown = [getattr(task, field) for field in task.template_fields]
    told = [*submission.command, submission.environment, submission.job, ran, shown, capsys.readouterr().out]
    assert [word for word in ("hush", "AKIA", "pst") if word in repr(told)] == []
    assert "lake" in shown


def test_two_tasks_of_one_process_have_their_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    other = Connection(conn_id="other", conn_type="aws", login="ELSE", password="shh")
    with fake_spark_submit(connections=[lake(), other]) as submissions:
        for name in ("lake", "other", None):
            run_task(operator(aws_conn_id=name), ds="1")
    assert [found.job.s3 and found.job.s3.access_key for found in submissions] == ["AKIA", "ELSE", None]
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aws_conn_id": "absent"}, "aws_conn_id names the connection 'absent', which is not there"),
        (
            {"aws_conn_id": "shop"},
            "'shop' cannot be used as aws_conn_id: it is of type 'mysql', expected 'aws'",
        ),
        ({"aws_conn_id": "{{ '' }}"}, "aws_conn_id is empty"),
        ({"aws_conn_id": ["lake"]}, "aws_conn_id must be a string"),
        (
            {"aws_conn_id": "lake", "conf": {"spark.hadoop.fs.s3a.access.key": "MINE"}},
            r"conf has spark\.hadoop\.fs\.s3a\.access\.key, which the connection 'lake' says too",
        ),
    ],
)
def test_a_connection_to_s3_that_cannot_work_fails_before_submission(
    arguments: dict[str, Any], message: str
) -> None:
    shop = Connection(conn_id="shop", conn_type="mysql", login="me", password="hush")
    with (
        fake_spark_submit(connections=[shop, lake()]) as submissions,
        pytest.raises(AirflowFailException, match=message) as raised,
    ):
        run_task(operator(**arguments), ds="1")
    assert submissions == []
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(StoreRefusedError, AirflowFailException), (StoreUnreachableError, AirflowException)],
)
def test_a_store_that_does_not_open_fails_before_submission(
    error: type[HydrogenError], kind: type[Exception]
) -> None:
    asked = []

    def refuse(access: S3Access, buckets: dict[str, str], *, same_host: bool) -> None:
        asked.append((access.conn_id, buckets, same_host))
        raise error("lake", "http://store:7070", "no")

    with (
        fake_spark_submit(connections=[lake()]) as submissions,
        mock.patch("airflow_hydrogen.hooks.buckets.require_open", refuse),
        pytest.raises(kind, match="aws_conn_id='lake'") as raised,
    ):
        run_task(operator(sink=Sink.parquet("s3://out/scored"), aws_conn_id="lake"), ds="1")
    assert type(raised.value) is kind
    assert asked == [("lake", {"out": "s3://out/scored"}, True)]
    assert submissions == []


def test_a_report_on_s3_is_read_with_the_keys_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    asked = []
    store = MemoryFileSystem()

    def filesystem(protocol: str, **options: Any) -> Any:
        asked.append((protocol, options))
        return store

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    master = Connection(conn_id="spark_default", conn_type="spark", host="spark://m", port=7077)
    task = operator(
        model_uri="s3://lake/m",
        source=Source.json("s3://lake/flights"),  # whose columns Spark alone knows: no look at the store
        sink=Sink.parquet("s3://lake/scored"),
        aws_conn_id="lake",
        deploy_mode="cluster",
    )
    with fake_spark_submit(connections=[master, lake()]) as submissions:
        run_task(task, ds="1")
    assert submissions[0].job.report_uri.startswith("s3://lake/scored.report-")
    assert submissions[0].option("--packages") is None, "what jars the cluster has is not seen from here"
    assert {(protocol, options["key"], options["secret"]) for protocol, options in asked} == {
        ("s3", "AKIA", "hush")
    }


def many(partitions: Any = None, **arguments: Any) -> ArrowInferenceOperator:
    between = days("{{ data_interval_start | ds }}", "{{ params.end }}")
    sink = Sink.parquet("/scored", partition_by=["{{ 'ds' }}"], partitions=partitions or between)
    return operator(source=Source.parquet("/lake"), sink=sink, **arguments)


INTERVAL = {
    "data_interval_start": datetime.datetime(2013, 2, 27, tzinfo=datetime.timezone.utc),
    "params": {"end": "2013-03-02"},
}


@pytest.mark.parametrize("native", [False, True])
def test_the_partitions_of_a_range_are_known_when_templates_are_rendered(native: bool) -> None:
    scores = Asset("scores")
    task = many(dag=DAG("flights", render_template_as_native_obj=native), outlets=[scores])
    with fake_spark_submit() as submissions:
        ran = run_task(task, **INTERVAL)
    sink = submissions[0].job.sink
    assert sink.partition_by == ("ds",)
    assert [partition["ds"] for partition in sink.partitions] == ["2013-02-27", "2013-02-28", "2013-03-01"]
    assert ran.return_value == "/scored"
    told = {"ds=2013-02-27": 0, "ds=2013-02-28": 0, "ds=2013-03-01": 0}
    assert ran.xcoms["report"]["partitions"] == ran.outlet_extra[scores]["partitions"] == told
    assert ran.partition_keys[scores] == set(), "else DAGs on the asset alone would not be started"


def test_native_rendering_keeps_the_text_of_each_partition() -> None:
    declared = ["{{ '20240102' }}", "{{ '00' }}"]
    with fake_spark_submit() as submissions:
        run_task(many(declared, dag=DAG("flights", render_template_as_native_obj=True)))
    assert submissions[0].job.sink.partitions == ({"ds": "20240102"}, {"ds": "00"})


def test_partitions_of_another_task_may_be_numbers_and_dates() -> None:
    dag = DAG("flights", render_template_as_native_obj=True)
    declared = [{"ds": datetime.date(2024, 1, 2), "hour": hour} for hour in (0, 12)]
    given = {"uri": "/scored", "partition_by": ["ds", "hour"], "partitions": declared}
    with fake_spark_submit() as submissions:
        run_task(operator(dag=dag, sink="{{ params.sink }}"), params={"sink": given}, ds="1")
    assert [tuple(found.values()) for found in submissions[0].job.sink.partitions] == [
        ("2024-01-02", "0"),
        ("2024-01-02", "12"),
    ]


@pytest.mark.parametrize(
    ("partitions", "params", "message"),
    [
        (None, {"end": "2013-02-27"}, "there is no day from 2013-02-27 until 2013-02-27, which is not one"),
        (None, {"end": "20130301"}, "days.. takes days such as '2013-01-01', found '20130301'; a template"),
        (["{{ params.end }}", "2013-01-01"], {"end": "2013-01-01"}, "name {'ds': '2013-01-01'} twice"),
        (["{{ params.end }}"], {"end": ""}, "'ds' must be a string that is not empty, found ''"),
    ],
)
def test_partitions_that_make_no_sense_fail_before_submission(
    partitions: Any, params: dict[str, str], message: str
) -> None:
    with fake_spark_submit() as submissions, pytest.raises(AirflowFailException, match=message):
        run_task(many(partitions), **{**INTERVAL, "params": params})
    assert submissions == []


@pytest.mark.skipif(not hasattr(airflow.sdk, "PartitionedAtRuntime"), reason="Airflow has it since 3.3")
def test_partitions_are_keys_of_asset_events_where_the_dag_finds_them_at_runtime() -> None:
    scores = Asset("scores")

    def at_runtime() -> DAG:
        return DAG("flights", schedule=airflow.sdk.PartitionedAtRuntime())

    with fake_spark_submit():
        ran = run_task(many(dag=at_runtime(), outlets=[scores, AssetAlias("through")]), **INTERVAL)
    assert ran.partition_keys[scores] == {"2013-02-27", "2013-02-28", "2013-03-01"}
    assert "partitions" not in ran.outlet_extra[scores], "each event would hold all of them"
    assert ran.alias_events["through"]["file:///scored"]["partitions"]
    both = [{"ds": "2013-01-01", "origin": "EWR"}]
    sink = Sink.parquet("/scored", partition_by=["ds", "origin"], partitions=both)
    with fake_spark_submit():
        ran = run_task(
            operator(source=Source.parquet("/lake"), sink=sink, dag=at_runtime(), outlets=[scores])
        )
    assert ran.partition_keys[scores] == {"2013-01-01|EWR"}
    key = {"ds": "x" * 251}
    sink = Sink.parquet("/scored", partition_by=["ds"], partitions=[key])
    with fake_spark_submit():
        ran = run_task(
            operator(source=Source.parquet("/lake"), sink=sink, dag=at_runtime(), outlets=[scores])
        )
    assert (ran.partition_keys[scores], len(ran.outlet_extra[scores]["partitions"])) == (set(), 1)
