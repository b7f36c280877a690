from __future__ import annotations

import pytest

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.operators.gang_conf import gang_conf

STANDALONE, YARN = "spark://master:7077", "yarn"
FIXED = {"spark.dynamicAllocation.enabled": "false"}
GPU_TASK, GPU_EXECUTOR = "spark.task.resource.gpu.amount", "spark.executor.resource.gpu.amount"


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
                GPU_TASK: "1",
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
                GPU_TASK: "2",
                GPU_EXECUTOR: "4",
            },
        ),
        (
            STANDALONE,
            {"np": 0, "gpus_per_process": 1},
            {**FIXED, "spark.executor.cores": "1", GPU_TASK: "1", GPU_EXECUTOR: "1"},
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


def test_settings_with_which_a_gang_cannot_run_are_refused_before_anything_is_submitted():
    given = {"spark.dynamicAllocation.enabled": "True"}
    with pytest.raises(InvalidJobError, match=r"conf sets spark\.dynamicAllocation\.enabled, with which"):
        gang_conf(STANDALONE, np=2, given=given)
    gang_conf("local[2]", np=2, given=given)
