from __future__ import annotations

import pytest

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.operators.gang_conf import gang_conf, scoring_conf

STANDALONE, YARN = "spark://master:7077", "yarn"
FIXED = {"spark.dynamicAllocation.enabled": "false"}
GPU_TASK, GPU_EXECUTOR = "spark.task.resource.gpu.amount", "spark.executor.resource.gpu.amount"
WORKER_REUSE = "spark.python.worker.reuse"


@pytest.mark.parametrize(
    ("master", "arguments", "expected"),
    [
        (STANDALONE, {"np": 4}, FIXED),
        (STANDALONE, {"np": 4, "cpus_per_process": 2}, {**FIXED, "spark.task.cpus": "2"}),
        (
            STANDALONE,
            {"np": 4, "gpus_per_process": 1},
            {
                **FIXED,
                "spark.executor.cores": "1",
                "spark.cores.max": "4",
                GPU_EXECUTOR: "1",
            },
        ),
        (
            STANDALONE,
            {"np": 3, "gpus_per_process": 2, "executor_cores": 4, "cpus_per_process": 2},
            {
                **FIXED,
                "spark.task.cpus": "2",
                "spark.cores.max": "8",
                GPU_EXECUTOR: "4",
            },
        ),
        (
            STANDALONE,
            {"np": 0, "gpus_per_process": 1},
            {**FIXED, "spark.executor.cores": "1", GPU_EXECUTOR: "1"},
        ),
        (
            YARN,
            {"np": 4, "cpus_per_process": 2},
            {**FIXED, "spark.task.cpus": "2", "spark.executor.cores": "2", "spark.executor.instances": "4"},
        ),
        (YARN, {"np": 4, "num_executors": 2, "executor_cores": 2}, FIXED),
        ("k8s://https://h:6443", {"np": 5, "executor_cores": 2}, {**FIXED, "spark.executor.instances": "3"}),
        ("local[4]", {"np": 4, "gpus_per_process": 1}, {}),
        ("local[*]", {"np": 4, "cpus_per_process": 2}, {"spark.task.cpus": "2"}),
        (STANDALONE, {"np": -2, "gpus_per_process": 1}, {}),
    ],
)
def test_executors_have_room_for_the_gang(master, arguments, expected):
    assert gang_conf(master, **arguments) == expected


def test_the_authors_own_settings_are_counted_with():
    given = {"spark.executor.cores": "4", "spark.cores.max": "64"}
    conf = gang_conf(STANDALONE, np=8, gpus_per_process=1, given=given)
    assert conf[GPU_EXECUTOR] == "4"
    assert "spark.cores.max" not in conf


def test_executors_whose_gpus_the_author_counts_hold_as_many_ranks_as_these_allow():
    given = {GPU_EXECUTOR: "1"}
    conf = gang_conf(STANDALONE, np=3, gpus_per_process=1, executor_cores=8, given=given)
    assert conf == {**FIXED, "spark.cores.max": "24"}


@pytest.mark.parametrize(
    ("gpus", "executor_cores", "given", "expected"),
    [
        (0, None, {}, {}),
        (1, None, {}, {**FIXED, GPU_EXECUTOR: "1", "spark.executor.cores": "1"}),
        (2, 8, {}, {**FIXED, GPU_EXECUTOR: "2"}),
        (0.25, None, {}, {**FIXED, GPU_EXECUTOR: "1", "spark.executor.cores": "4"}),
        (
            0.25,
            None,
            {"spark.task.cpus": "2"},
            {**FIXED, GPU_EXECUTOR: "1", "spark.executor.cores": "8"},
        ),
        (0.5, None, {"spark.executor.cores": "6"}, {**FIXED, GPU_EXECUTOR: "1"}),
        (1, 4, {GPU_EXECUTOR: "4"}, {**FIXED, WORKER_REUSE: "false"}),
        (1, 4, {GPU_EXECUTOR: "1", WORKER_REUSE: "true"}, FIXED),
    ],
)
def test_executors_have_the_gpus_of_one_task_that_scores(gpus, executor_cores, given, expected):
    found = scoring_conf(STANDALONE, gpus_per_task=gpus, executor_cores=executor_cores, given=given)
    assert found == expected


@pytest.mark.parametrize(
    ("master", "given", "complaint"),
    [
        ("local[*]", {}, r"gpus_per_task=2, but master 'local\[\*\]' schedules no GPUs: name a cluster"),
        (YARN, {GPU_TASK: "1"}, r"conf sets spark\.task\.resource\.gpu\.amount, by which every task"),
        (
            YARN,
            {"spark.dynamicAllocation.enabled": True},
            r"conf sets spark\.dynamicAllocation\.enabled, with",
        ),
        (YARN, {GPU_EXECUTOR: "1"}, r"gpus_per_task=2 needs executors with 2 GPUs, and conf sets .* to 1"),
        (YARN, {GPU_EXECUTOR: "0.5"}, r"to '0\.5', and executors have whole GPUs"),
        (YARN, {GPU_EXECUTOR: 4, WORKER_REUSE: True}, r"to 4 and spark\.python\.worker\.reuse, so that"),
    ],
)
def test_settings_with_which_no_task_can_score_on_gpus(master, given, complaint):
    with pytest.raises(InvalidJobError, match=complaint):
        scoring_conf(master, gpus_per_task=2, given=given)


def test_settings_with_which_a_gang_cannot_run_are_refused_before_anything_is_submitted():
    given = {"spark.dynamicAllocation.enabled": "True"}
    with pytest.raises(InvalidJobError, match=r"conf sets spark\.dynamicAllocation\.enabled, with which"):
        gang_conf(STANDALONE, np=2, given=given)
    gang_conf("local[2]", np=2, given=given)
