from __future__ import annotations

import pytest

from airflow_hydrogen.contract.errors import AcceleratorError
from airflow_hydrogen.runtime.gang.accelerators import environment, visible_devices


@pytest.mark.parametrize(
    ("assigned", "wanted", "local_rank", "devices"),
    [
        (["3"], 1, 0, ["3"]),
        (["5", "2"], 2, 1, ["5", "2"]),
        (["1"], 0, 0, ["1"]),
        ([], 0, 3, []),
        ([], 1, 3, ["3"]),
        ([], 2, 3, ["6", "7"]),
    ],
)
def test_a_rank_sees_what_spark_gave_else_those_of_its_local_rank(assigned, wanted, local_rank, devices):
    assert visible_devices(assigned, wanted, local_rank, 9) == devices


def test_fewer_than_wanted_is_an_error_that_names_the_setting():
    with pytest.raises(
        AcceleratorError, match=r"rank 9 wants gpus_per_process=2, but Spark assigned 4: set spark"
    ):
        visible_devices(["4"], 2, 0, 9)


def test_a_rank_without_gpus_sees_none():
    assert environment([]) == {"CUDA_VISIBLE_DEVICES": ""}
    assert environment(["0", "3"]) == {"CUDA_VISIBLE_DEVICES": "0,3"}
