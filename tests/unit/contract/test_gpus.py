from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.gpus import gpu_share, tasks_on, whole_gpus


@pytest.mark.parametrize(
    ("value", "gpus", "tasks", "whole"),
    [
        (0, 0, 1, 0),
        (1, 1, 1, 1),
        ("2", 2, 1, 2),
        (4.0, 4, 1, 4),
        (0.5, 1 / 2, 2, 1),
        (" 0.25 ", 1 / 4, 4, 1),
        (0.33, 1 / 3, 3, 1),
        (0.333, 1 / 3, 3, 1),
    ],
)
def test_a_task_has_whole_gpus_or_an_equal_part_of_one(value, gpus, tasks, whole):
    found = gpu_share("gpus_per_task", value)
    assert (found, tasks_on(found), whole_gpus(found)) == (gpus, tasks, whole)


@given(st.integers(2, 1000))
def test_so_many_parts_of_a_gpu_fit_on_it(tasks):
    part = gpu_share("gpus_per_task", 1 / tasks)
    assert tasks_on(part) == tasks
    assert gpu_share("gpus_per_task", part) == part


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (-1, "gpus_per_task must be a number of GPUs, 0 or more, or a part of one such as 0.5, found -1"),
        ("many", "must be a number of GPUs, 0 or more, or a part of one such as 0.5, found 'many'"),
        (None, "found None"),
        (True, "found True"),
        (float("inf"), "found inf"),
        ("nan", "found 'nan'"),
        (1.5, "gpus_per_task above 1 must be a whole number of GPUs, found 1.5"),
        (
            0.3,
            r"below 1 must be 1/n, so that .* found 0.3, and the nearest is 0.3333 for 3",
        ),
        (0.7, "found 0.7, and the nearest is 1.0 for 1 tasks"),
    ],
)
def test_other_numbers_are_refused_with_what_would_do(value, complaint):
    with pytest.raises(InvalidJobError, match=complaint):
        gpu_share("gpus_per_task", value)
