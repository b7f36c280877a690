from __future__ import annotations

import pytest

from airflow_hydrogen.contract.errors import AcceleratorError
from airflow_hydrogen.runtime.devices import environment
from airflow_hydrogen.runtime.gang.accelerators import visible_devices


@pytest.mark.parametrize(
    ("assigned", "given", "wanted", "local_rank", "devices"),
    [
        (["3"], None, 1, 0, ["3"]),
        (["5", "2"], None, 2, 1, ["5", "2"]),
        (["1"], None, 0, 0, ["1"]),
        ([], None, 0, 3, []),
        ([], None, 1, 3, ["3"]),
        ([], None, 2, 3, ["6", "7"]),
        # Of a shared machine only some may be used.
        ([], "6,7", 1, 0, ["6"]),
        ([], "6,7", 1, 1, ["7"]),
        ([], " 4, 5,6 ,7", 2, 1, ["6", "7"]),
        ([], "GPU-8932f937,MIG-c6d4f1ef", 1, 1, ["MIG-c6d4f1ef"]),
        ([], "6,7", 0, 0, []),
        (["3"], "6,7", 1, 0, ["3"]),
    ],
)
def test_a_rank_sees_what_spark_gave_else_those_of_its_local_rank(
    assigned, given, wanted, local_rank, devices
):
    assert visible_devices(assigned, given, wanted, local_rank, 9) == devices


def test_fewer_than_wanted_is_an_error_that_names_the_setting():
    with pytest.raises(
        AcceleratorError, match=r"rank 9 wants gpus_per_process=2, but Spark assigned 4: set spark"
    ):
        visible_devices(["4"], None, 2, 0, 9)


@pytest.mark.parametrize(
    ("given", "found"), [("6,7", "none"), ("6,7,8", "8"), ("", "none"), ("-1", "none"), ("6,-1,7,8", "none")]
)
def test_fewer_than_the_host_allows_is_an_error_that_names_the_variable(given, found):
    with pytest.raises(
        AcceleratorError,
        match=rf"rank 9 wants gpus_per_process=2, but CUDA_VISIBLE_DEVICES='{given}' on its host leaves "
        rf"{found} for it: lower gpus_per_process",
    ):
        visible_devices([], given, 2, 1, 9)


def test_a_rank_without_gpus_sees_none():
    assert environment([]) == {"CUDA_VISIBLE_DEVICES": ""}
    assert environment(["0", "3"]) == {"CUDA_VISIBLE_DEVICES": "0,3"}
