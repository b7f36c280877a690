"""The sensor: arguments, poke, deferral and what users know of sensors; the clusters are fakes."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.sdk import DAG
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import AirflowRescheduleException

from airflow_hydrogen.clusters import managers
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.requirement import Requirement
from airflow_hydrogen.clusters.session import Session
from airflow_hydrogen.clusters.snapshot import Amounts, ClusterSnapshot, Node
from airflow_hydrogen.contract.errors import ClusterResponseError, ClusterUnreachableError, InvalidJobError
from airflow_hydrogen.sensors.gpu_cluster import GPUClusterSensor
from airflow_hydrogen.triggers.gpu_cluster import GPUClusterTrigger

GIB = 1 << 30
DOWN = ClusterUnreachableError("http://m:8080", "ConnectError")


def free(gpus: int) -> ClusterSnapshot:
    node = Node("w1", "h1", Amounts(4, 8 * GIB, {"gpu": 4}), Amounts(4, 8 * GIB, {"gpu": gpus}))
    return ClusterSnapshot("fake://m:1", (node,))


class FakeManager:
    """Answers as the test says; the last answer stays."""

    answers: list[ClusterSnapshot | Exception]

    def __init__(self, endpoint: ClusterEndpoint) -> None:
        pass

    @staticmethod
    def addresses(master: str, extra: Any, conn_id: str) -> tuple[str, ...]:
        return ()

    async def snapshot(self, session: Session) -> ClusterSnapshot:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[ClusterSnapshot | Exception]:
    FakeManager.answers = [free(0)]
    monkeypatch.setitem(managers.MANAGERS, "fake", FakeManager)
    connection = {"conn_type": "spark", "host": "fake://m", "port": 1}
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps(connection))
    return FakeManager.answers


@pytest.fixture
def no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_SPARK_DEFAULT", raising=False)


def sensor(**arguments: Any) -> GPUClusterSensor:
    with DAG("d"):
        return GPUClusterSensor(task_id="gpus", **{"poke_interval": 0.01, **arguments})


# --- arguments ---------------------------------------------------------------------------------------


def test_arguments_become_a_requirement_also_as_the_text_of_templates() -> None:
    made = sensor(gpus="4", resource="nvidia.com/mig-1g.5gb", amount=" 2", cores=8, memory="16g", hosts="2")
    assert made.requirement() == Requirement(
        resources={"gpu": 4, "nvidia.com/mig-1g.5gb": 2}, cores=8, memory_bytes=16 * GIB, hosts=2
    )
    gang = sensor(np=4, gpus_per_process="1", cpus_per_process=2, free_now=False)
    assert gang.requirement() == Requirement(
        np=4, gpus_per_process=1, cpus_per_process=2, executor_memory_bytes=GIB, free_now=False
    )
    sized = sensor(np=4, memory_per_process="2g", executor_cores="4", executor_memory="8g")
    assert sized.requirement() == Requirement(
        np=4, memory_per_process_bytes=2 * GIB, executor_cores=4, executor_memory_bytes=8 * GIB
    )
    assert sensor(gpus=1, resource="yarn.io/gpu", amount=2).requirement().resources == {"gpu": 3}


@pytest.mark.parametrize(
    ("arguments", "np", "gpus", "cores"),
    [
        ({"gpus_per_task": 1}, 1, 1, 1),
        ({"gpus_per_task": "2", "num_executors": "3", "executor_cores": 8}, 3, 2, 8),
        ({"gpus_per_task": 0.25, "num_executors": 2}, 2, 1, 4),
        ({"gpus_per_task": 0.25, "cpus_per_process": 2}, 1, 1, 8),
        ({"gpus_per_task": 0.5, "executor_cores": 16}, 1, 1, 16),
    ],
)
def test_executors_of_a_scoring_are_waited_for_as_the_operator_asks_for_them(
    arguments: dict[str, Any], np: int, gpus: int, cores: int
) -> None:
    found = sensor(executor_memory="8g", **arguments).requirement()
    assert found == Requirement(
        np=np,
        executors=True,
        gpus_per_process=gpus,
        cpus_per_process=cores,
        executor_cores=cores,
        executor_memory_bytes=8 * GIB,
    )
    assert str(found).startswith(f"{np} executors of {gpus} gpu and {cores} cores each")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"gpus_per_task": 0.3}, "gpus_per_task below 1 must be 1/n"),
        ({"gpus_per_task": 0}, "gpus_per_task=0 needs no GPUs: leave it out"),
        ({"gpus_per_task": "many"}, "gpus_per_task must be a number of GPUs"),
        (
            {"gpus_per_task": 1, "np": 2},
            "np and gpus_per_process are of a gang, and gpus_per_task of a scoring",
        ),
        ({"gpus": 1, "num_executors": 2}, "num_executors needs gpus_per_task"),
    ],
)
def test_what_no_scoring_can_wait_for(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidJobError, match=complaint):
        sensor(**arguments).requirement()


def test_every_amount_is_a_template() -> None:
    made = sensor(gpus="{{ n }}", conn_id="{{ c }}", memory="{{ n }}g", np="{{ n }}")
    made.render_template_fields({"n": 3, "c": "cluster"})
    assert (made.gpus, made.conn_id, made.memory, made.np) == ("3", "cluster", "3g", "3")


def test_one_message_names_all_faults_and_no_soft_fail_hides_it() -> None:
    wrong = sensor(gpus="many", cores=1.5, amount=2, memory="12", soft_fail=True)
    with pytest.raises(AirflowFailException) as caught:
        wrong.execute({})
    assert str(caught.value) == (
        "what the sensor waits for cannot be: cores must be an integer, found 1.5; gpus must be an integer, "
        "found 'many'; resource and amount go together; memory must be bytes or a text such as '4g' or "
        "'512m', found '12'"
    )


def test_zero_gpus_is_a_fault() -> None:
    with pytest.raises(InvalidJobError, match="amount of 'gpu' must be at least 1, found 0"):
        sensor(gpus=0).requirement()


# --- poking ------------------------------------------------------------------------------------------


def test_poke_answers_with_the_snapshot(answers: list[Any]) -> None:
    answers[:] = [free(1), free(2)]
    waiting = sensor(gpus=2)
    assert not waiting.poke({})
    found = waiting.poke({})
    assert found
    assert found.xcom_value == {
        "master": "fake://m:1",
        "total": {"cores": 4, "memory_bytes": 8 * GIB, "resources": {"gpu": 4}},
        "free": {"cores": 4, "memory_bytes": 8 * GIB, "resources": {"gpu": 2}},
        "hosts": [
            {
                "name": "w1",
                "host": "h1",
                "total": {"cores": 4, "memory_bytes": 8 * GIB, "resources": {"gpu": 4}},
                "free": {"cores": 4, "memory_bytes": 8 * GIB, "resources": {"gpu": 2}},
            }
        ],
    }


def test_without_deferral_it_waits_here_and_its_xcom_is_the_snapshot(answers: list[Any]) -> None:
    answers[:] = [free(0), DOWN, free(4)]
    assert sensor(gpus=4, deferrable=False).execute({})["free"]["resources"] == {"gpu": 4}


def test_a_master_that_is_down_is_waited_for_and_a_refusal_is_not(answers: list[Any]) -> None:
    answers[:] = [DOWN, ClusterResponseError("http://m:8080", "status 401")]
    waiting = sensor(gpus=1)
    assert not waiting.poke({})
    with pytest.raises(AirflowFailException, match="cluster manager at http://m:8080: status 401"):
        waiting.poke({})


@pytest.mark.usefixtures("no_connection")
def test_without_a_connection_it_is_this_machine() -> None:
    assert sensor(cores=1).poke({}).xcom_value["master"] == "local[*]"
    with pytest.raises(AirflowFailException, match=r"this machine alone.*: needs 1 gpu, found 0; lower it"):
        sensor(gpus=1).poke({})
    with pytest.raises(AirflowFailException, match="there is no connection 'mine'"):
        sensor(gpus=1, conn_id="mine").poke({})


# --- what users know of sensors ----------------------------------------------------------------------


@pytest.mark.usefixtures("answers")
def test_timeout_fails_and_soft_fail_skips() -> None:
    with pytest.raises(AirflowSensorTimeout):
        sensor(gpus=1, timeout=0.03, deferrable=False).execute({})
    with pytest.raises(AirflowSkipException):
        sensor(gpus=1, timeout=0.03, deferrable=False, soft_fail=True).execute({})


@pytest.mark.usefixtures("answers")
def test_reschedule_gives_the_slot_back() -> None:
    class TaskInstance:
        def get_first_reschedule_date(self, context: Any) -> None:
            return None

    with pytest.raises(AirflowRescheduleException):
        sensor(gpus=1, mode="reschedule", poke_interval=60, deferrable=False).execute({"ti": TaskInstance()})


@pytest.mark.usefixtures("no_connection")
@pytest.mark.parametrize("deferrable", [True, False])
def test_soft_fail_skips_what_can_never_be(deferrable: bool) -> None:
    with pytest.raises(AirflowSkipException):
        sensor(gpus=1, deferrable=deferrable, soft_fail=True).execute({})


# --- deferral ----------------------------------------------------------------------------------------


def test_what_is_there_at_once_is_not_deferred(answers: list[Any]) -> None:
    answers[:] = [free(4)]
    assert sensor(gpus=4, deferrable=True).execute({})["free"]["resources"] == {"gpu": 4}


@pytest.mark.usefixtures("answers")
def test_it_pokes_once_then_waits_on_the_triggerer() -> None:
    with pytest.raises(TaskDeferred) as caught:
        sensor(gpus=4, deferrable=True, timeout=90, poke_interval=30, max_wait=timedelta(minutes=2)).execute(
            {}
        )
    assert caught.value.timeout == timedelta(seconds=90)
    assert caught.value.method_name == "execute_complete"
    assert isinstance(caught.value.trigger, GPUClusterTrigger)
    assert caught.value.trigger.serialize()[1] == {
        "conn_id": "spark_default",
        "requirement": Requirement(resources={"gpu": 4}).to_dict(),
        "poke_interval_s": 30,
        "max_wait_s": 120,
    }


def test_a_master_that_is_down_at_first_is_waited_for_on_the_triggerer(answers: list[Any]) -> None:
    answers[:] = [DOWN]
    with pytest.raises(TaskDeferred):
        sensor(gpus=4, deferrable=True).execute({})


def test_deferral_is_a_setting_of_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from airflow_hydrogen.sensors import gpu_cluster

    assert not sensor(gpus=1).deferrable
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "true")
    try:
        reloaded = importlib.reload(gpu_cluster)
        with DAG("d"):
            assert reloaded.GPUClusterSensor(task_id="t", gpus=1).deferrable
    finally:
        monkeypatch.undo()
        importlib.reload(gpu_cluster)


def test_resuming_takes_all_it_needs_from_the_event() -> None:
    event = {"status": "success", "snapshot": {"free": {}}}
    assert sensor(gpus=1).execute_complete({}, event) == {"free": {}}
    with pytest.raises(AirflowFailException, match="status 401"):
        sensor(gpus=1).execute_complete({}, {"status": "error", "message": "status 401"})
    with pytest.raises(AirflowException, match="without an event"):
        sensor(gpus=1).execute_complete({}, None)


def test_soft_fail_and_timeout_hold_while_deferred() -> None:
    error = {"event": {"status": "error", "message": "status 401"}}
    with pytest.raises(AirflowFailException, match="status 401"):
        sensor(gpus=1).resume_execution("execute_complete", error, {})
    with pytest.raises(AirflowSkipException):
        sensor(gpus=1, soft_fail=True).resume_execution("execute_complete", error, {})
    timed_out = {"error": TriggerFailureReason.TRIGGER_TIMEOUT}
    with pytest.raises(AirflowSensorTimeout):
        sensor(gpus=1).resume_execution("__fail__", timed_out, {})
    with pytest.raises(AirflowSkipException):
        sensor(gpus=1, soft_fail=True).resume_execution("__fail__", timed_out, {})
