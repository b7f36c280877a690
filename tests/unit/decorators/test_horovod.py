"""`@task.horovod`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG

from airflow_hydrogen.contract import pickling
from airflow_hydrogen.contract.errors import InvalidJobError, KwargsError
from airflow_hydrogen.contract.reports import TrainReport
from airflow_hydrogen.decorators.horovod import bind_arguments, horovod_task
from airflow_hydrogen.testing import fake_spark_submit, run_task


def build(function: Any, *args: Any, multiple_outputs: bool | None = None, **kwargs: Any) -> Any:
    with DAG("flights"):
        decorated = horovod_task(multiple_outputs=multiple_outputs, np=2, model_uri="/models/m")(function)
        return decorated(*args, **kwargs).operator


def test_arguments_become_keyword_arguments_of_the_entry_point() -> None:
    def train(epochs: int, rate: float = 0.1, *, day: str = "") -> str:
        """Train it."""
        return f"{epochs} {rate} {day}"

    task = build(train, 3, day="{{ ds }}")
    assert (task.task_id, task.doc_md) == ("train", "Train it.")
    with fake_spark_submit() as submissions:
        ran = run_task(task, ds="2013-01-01")
    job = submissions[0].job
    assert job.entrypoint_kwargs == {"epochs": 3, "day": "2013-01-01"}
    assert pickling.loads(job.entrypoint.pickle)(**job.entrypoint_kwargs) == "3 0.1 2013-01-01"
    assert (job.np, ran.return_value) == (2, "/models/m")


def test_dict_result_becomes_several_xcoms() -> None:
    def train() -> dict[str, int]:
        return {}

    task = build(train)
    with fake_spark_submit(TrainReport(result={"a": 1})):
        assert run_task(task).return_value == {"a": 1}
    assert task.multiple_outputs


def test_model_of_a_function_that_promises_a_dict_is_not_lost() -> None:
    def train() -> dict[str, int]:
        return {}

    task = build(train)
    with fake_spark_submit():
        assert run_task(task).return_value == "/models/m"
    assert not task.multiple_outputs


def test_context_does_not_reach_the_cluster() -> None:
    def train(ds: Any = None) -> None: ...

    def needs(epochs: int, ds: Any) -> None: ...

    with fake_spark_submit() as submissions:
        run_task(build(train), ds="2013-01-01")
        assert submissions[0].job.entrypoint_kwargs == {}
        message = r"needs\(.*missing a required argument: 'ds'; the cluster has no Airflow.*ds='\{\{ ds \}\}'"
        with pytest.raises(AirflowFailException, match=message):
            run_task(build(needs, 1), ds="2013-01-01")


def test_arguments_that_are_not_json_are_named() -> None:
    def train(rows: Any, **more: Any) -> None: ...

    assert bind_arguments(train, [[1]], {"x": "y"}) == {"rows": [1], "x": "y"}
    with pytest.raises(KwargsError, match=r"argument 'rows' of train must be JSON: .* is a builtins.set"):
        bind_arguments(train, [{1}], {})
    with pytest.raises(KwargsError, match=r"argument 'x' of train\['a'\] must be JSON"):
        bind_arguments(train, [1], {"x": {"a": object()}})


def test_results_of_mapped_tasks_are_lists() -> None:
    class Lazy(Sequence[int]):
        def __getitem__(self, index: Any) -> Any:
            return [1, 2][index]

        def __len__(self) -> int:
            return 2

    def train(parts: Any) -> None: ...

    assert bind_arguments(train, [Lazy()], {}) == {"parts": [1, 2]}


def test_arguments_without_names_are_refused() -> None:
    def train(*parts: int) -> None: ...

    with pytest.raises(InvalidJobError, match=r"'parts' cannot be given by name"):
        bind_arguments(train, [1], {})


def test_entrypoint_kwargs_are_the_call() -> None:
    def train() -> None: ...

    with DAG("flights"), pytest.raises(TypeError, match=r"takes no entrypoint_kwargs: call the function"):
        horovod_task(np=2, model_uri="/m", entrypoint_kwargs={"a": 1})(train)()


def test_typos_are_refused() -> None:
    def train() -> None: ...

    with DAG("flights"), pytest.raises(TypeError, match="Invalid arguments"):
        horovod_task(np=2, model_uri="/m", model_url="/m")(train)()


def test_mapped_tasks_train_one_model_each() -> None:
    def train(epochs: int) -> int:
        return epochs

    with DAG("flights"):
        decorated = horovod_task(np=2, model_uri="/models/{{ ti.map_index }}")(train)
        mapped = decorated.expand(epochs=[1, 2]).operator
    with fake_spark_submit() as submissions:
        task = mapped.unmap({"op_kwargs": {"epochs": 2}})
        run_task(task, map_index=1)
    assert submissions[0].job.model_uri == "/models/1"
    assert submissions[0].job.entrypoint_kwargs == {"epochs": 2}
    assert submissions[0].job.run.map_index == 1
