from __future__ import annotations

from types import SimpleNamespace

import pytest

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.runtime.gang import profiles

CLUSTER = "spark://m:7077"
GPU_EXECUTOR = "spark.executor.resource.gpu.amount"
GPU_TASK = "spark.task.resource.gpu.amount"


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """A profile is a word here: Spark's own needs a JVM."""
    monkeypatch.setattr(profiles, "_profile", lambda spark, gpus: f"{gpus:g} GPUs")


def session(master=CLUSTER, **settings):
    conf = SimpleNamespace(
        get=lambda name, default=None: settings.get(name, default), contains=lambda name: name in settings
    )
    return SimpleNamespace(sparkContext=SimpleNamespace(master=master, getConf=lambda: conf))


@pytest.mark.parametrize(
    ("master", "settings", "gpus", "found"),
    [
        (CLUSTER, {GPU_EXECUTOR: "2"}, 1, "1 GPUs"),
        (CLUSTER, {GPU_EXECUTOR: "2"}, 2, "2 GPUs"),
        (CLUSTER, {GPU_EXECUTOR: "2"}, 0, None),
        # Ranks go by their local rank, or by what the author has said of all tasks.
        (CLUSTER, {}, 1, None),
        (CLUSTER, {GPU_EXECUTOR: "1"}, 2, None),
        (CLUSTER, {GPU_EXECUTOR: "1", GPU_TASK: "1"}, 1, None),
        ("local[2]", {GPU_EXECUTOR: "1"}, 1, None),
    ],
)
def test_the_stage_of_a_gang_asks_for_gpus_where_spark_can_give_them(master, settings, gpus, found):
    assert profiles.of_gang(session(master, **settings), gpus) == found


@pytest.mark.parametrize(
    ("settings", "gpus", "found"),
    [
        ({}, 0, None),
        ({GPU_EXECUTOR: "1"}, 1, "1 GPUs"),
        ({GPU_EXECUTOR: "1"}, 0.25, "0.25 GPUs"),
        ({GPU_EXECUTOR: "4", "spark.python.worker.reuse": "false"}, 1, "1 GPUs"),
    ],
)
def test_tasks_that_score_ask_for_theirs(settings, gpus, found):
    assert profiles.of_scoring(session(**settings), gpus) == found


@pytest.mark.parametrize(
    ("master", "settings", "complaint"),
    [
        ("local[*]", {}, r"gpus_per_task=2, but master local\[\*\] schedules no GPUs"),
        (CLUSTER, {}, r"executors have 0 GPUs: set spark\.executor\.resource\.gpu\.amount to 2"),
        (CLUSTER, {GPU_EXECUTOR: "1"}, r"executors have 1 GPUs: set"),
        (
            CLUSTER,
            {GPU_EXECUTOR: "4"},
            r"is 4, so that .*: set it to 2, or spark\.python\.worker\.reuse to false",
        ),
        (CLUSTER, {"spark.dynamicAllocation.enabled": "True"}, r"dynamicAllocation\.enabled is true"),
    ],
)
def test_an_application_that_cannot_have_such_tasks_says_why(master, settings, complaint):
    with pytest.raises(InvalidJobError, match=complaint):
        profiles.of_scoring(session(master, **settings), 2)
