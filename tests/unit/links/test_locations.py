"""Links to models, scores and the Spark UI."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.links.locations import (
    ModelLocationLink,
    OutputLocationLink,
    SparkLogLink,
    SparkUILink,
    browsable,
    browsable_file,
)
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
from airflow_hydrogen.operators.train import HorovodTrainOperator


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("/models/m", "file:///models/m"),
        ("file:/models/a b#1%", "file:///models/a%20b%231%25"),
        ("https://host/m", "https://host/m"),
        ("s3a://lake/a b/m", "https://s3.console.aws.amazon.com/s3/buckets/lake?prefix=a%20b/m/"),
        ("s3://lake", "https://s3.console.aws.amazon.com/s3/buckets/lake?prefix="),
        ("gs://lake/m", "https://console.cloud.google.com/storage/browser/lake/m"),
        ("hdfs://name/m", "hdfs://name/m"),
    ],
)
def test_browsable(uri: str, address: str) -> None:
    assert browsable(uri) == address


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("/logs/a b.log", "file:///logs/a%20b.log"),
        ("s3a://lake/a/b.log", "https://s3.console.aws.amazon.com/s3/object/lake?prefix=a/b.log"),
        ("gs://lake/b.log", "https://console.cloud.google.com/storage/browser/_details/lake/b.log"),
        ("hdfs://name/b.log", "hdfs://name/b.log"),
    ],
)
def test_a_single_file_is_browsable(uri: str, address: str) -> None:
    assert browsable_file(uri) == address


def test_links_of_the_operators() -> None:
    key: Any = None
    train = HorovodTrainOperator(task_id="t", entrypoint="m:f", np=1, model_uri="/m")
    score = ArrowInferenceOperator(
        task_id="s",
        model_uri="/m",
        source=Source.parquet("/a"),
        sink=Sink.parquet("/b", partition={"ds": "1"}),
    )
    assert [link.name for link in train.operator_extra_links] == ["Spark UI", "Spark log", "Model"]
    assert [link.name for link in score.operator_extra_links] == ["Spark UI", "Spark log", "Scores"]
    assert ModelLocationLink().get_link(train, ti_key=key) == "file:///m"
    assert OutputLocationLink().get_link(score, ti_key=key) == "file:///b/ds=1"
    assert SparkUILink().get_link(train, ti_key=key) == ""  # it ends with the application
    assert SparkLogLink().get_link(train, ti_key=key) == "", "nothing is submitted yet"
    keys = {link.xcom_key for link in (*train.operator_extra_links, *score.operator_extra_links)}
    assert keys == {"_link_spark_ui", "_link_spark_log", "_link_model", "_link_scores"}
