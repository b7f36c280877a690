"""Jobs that publish a model that was trained elsewhere."""

from __future__ import annotations

import dataclasses
import json

import pytest

from airflow_hydrogen.contract.errors import ContractVersionError, HydrogenError, InvalidJobError, KwargsError
from airflow_hydrogen.contract.jobs import Run
from airflow_hydrogen.contract.publications import (
    GivenColumn,
    PublishJob,
    PublishReport,
    framework_of,
    given_columns,
)


def job(**changes):
    return PublishJob(**{"model": "/in/m.onnx", "model_uri": "/models/m", "columns": ["a", "b"], **changes})


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ("a", {None: (GivenColumn("a"),)}),
        (["a", "b"], {None: (GivenColumn("a"), GivenColumn("b"))}),
        ({"name": "p", "width": 3}, {None: (GivenColumn("p", 3),)}),
        (["a", {"name": "p", "width": 3}], {None: (GivenColumn("a"), GivenColumn("p", 3))}),
        ({"x": "a", "y": ["a", "b"]}, {"x": (GivenColumn("a"),), "y": (GivenColumn("a"), GivenColumn("b"))}),
        ({"name": "a", "width": "b"}, {"name": (GivenColumn("a"),), "width": (GivenColumn("b"),)}),
    ],
)
def test_columns_are_of_one_input_or_of_named_ones(columns, found):
    assert given_columns(columns) == found
    assert PublishJob.loads(job(columns=columns).dumps()).columns == columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "columns must be names"),
        ({}, "columns must be names"),
        (None, "columns must be names"),
        ([""], "columns must be names"),
        ([1], "columns must be names"),
        (["a", "a"], "gives one input 'a' twice"),
        ({"x": "a", "y": {"name": "a", "width": 2}}, "gives column 'a' two widths"),
        ([{"name": "a", "width": 0}], "columns must be names"),
        ([{"name": "a"}], "columns must be names"),
    ],
)
def test_other_columns_are_refused_with_the_form_that_is_expected(columns, message):
    with pytest.raises(InvalidJobError, match=message):
        job(columns=columns)


@pytest.mark.parametrize(
    ("model", "framework"),
    [
        ("s3://b/m.onnx", "onnx"),
        ("M.ONNX", "onnx"),
        ("/m.keras", "keras"),
        ("/m.pt2", "torch"),
        ("/m/v1.2", "tensorflow"),
    ],
)
def test_the_name_says_what_kind_of_model_it_is(model, framework):
    assert framework_of(model) == framework


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "net.pt"}, r"'net\.pt' is none that can be published.*torch\.export\.save\(.* makes one"),
        ({"model": "m.pkl"}, "skl2onnx makes one"),
        ({"model": ""}, "model must be a URI or a path"),
        ({"model": "/"}, "whole bucket or filesystem"),
        ({"model_uri": "/models/p.alias"}, "is the name of an alias"),
        ({"model": "/models/m/v1"}, "are one folder, or one lies in the other"),
        ({"model": "/models"}, "are one folder, or one lies in the other"),
        ({"model": "s3a://b/m", "model_uri": "s3://b/m/"}, "are one folder"),
        ({"alias": "/models/production"}, r"is no name of an alias: expected one that ends in '\.alias'"),
        (
            {"model_uri": "s3a://b/m", "alias": "s3://b/m/p.alias"},
            "lies in the folder of the model 's3a://b/m'",
        ),
        ({"outputs": "y"}, "outputs must be a list of names"),
        ({"outputs": []}, "outputs must be a list of names"),
        ({"outputs": ["y", "y"]}, "names an output twice"),
        ({"model": "/m.keras", "outputs": ["y"]}, "outputs of a .keras file cannot be chosen"),
        ({"example": {}}, "example must be column -> value"),
        ({"metrics": {"auc": float("nan")}}, "finite number, found 'auc'"),
        ({"metrics": {"auc": "0.9"}}, "finite number, found 'auc'"),
        ({"metrics": [1]}, r"finite number, found \[1\]"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(changes, message):
    with pytest.raises(InvalidJobError, match=message):
        job(**changes)


def test_an_example_travels_as_json():
    with pytest.raises(KwargsError, match=r"example\['a'\]"):
        job(example={"a": object()})


def test_what_makes_no_other_model_is_no_part_of_it():
    run = Run(dag_id="d", task_id="t", run_id="r")
    same = job(alias="/models/p.alias", report_uri="/tmp/r", run=run)
    assert same.parts() == job().parts()
    assert job(columns=["b", "a"]).parts() != job().parts()
    assert job(metrics={"auc": 0.9}).parts() != job().parts()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"contract_version": 1}, ContractVersionError),
        ({"kind": "train"}, InvalidJobError),
        ({"colums": []}, InvalidJobError),
    ],
)
def test_other_files_are_no_such_jobs(change, error):
    with pytest.raises(error):
        PublishJob.loads(json.dumps({**json.loads(job().dumps()), **change}))
    if "colums" not in change:
        with pytest.raises(HydrogenError):
            PublishReport.loads(json.dumps({**json.loads(PublishReport().dumps()), **change}))


def test_the_buckets_of_a_job():
    places = job(model="s3://in/m.onnx", model_uri="/models/m", alias="s3a://out/p.alias")
    assert set(places.buckets) == {"in", "out"}
    assert dataclasses.replace(places, model="/m.onnx", alias=None).buckets == {}
