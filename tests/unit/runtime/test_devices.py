from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from airflow_hydrogen.contract.errors import WorkerDevicesError
from airflow_hydrogen.runtime import devices


@pytest.fixture(autouse=True)
def worker(monkeypatch):
    """A process that has held nothing."""
    monkeypatch.setattr(devices, "_held", None)
    for name in ("CUDA_VISIBLE_DEVICES", "TF_FORCE_GPU_ALLOW_GROWTH"):
        monkeypatch.setenv(name, "as it was")
        monkeypatch.delenv(name)


def task(**resources):
    found = {name: SimpleNamespace(addresses=addresses) for name, addresses in resources.items()}
    return SimpleNamespace(resources=lambda: found)


def test_what_spark_gave_to_a_task():
    assert devices.assigned(task(gpu=["3", "1"], fpga=["f0"])) == ["3", "1"]
    assert devices.assigned(task(fpga=["f0"])) == []


def test_a_worker_sees_its_own_gpus_alone_and_takes_memory_as_it_needs_it():
    devices.hold(["3", "1"])
    assert devices.held() == ("3", "1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    devices.hold(["1", "3"])  # the same ones
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,1"


def test_the_users_own_word_on_memory_holds(monkeypatch):
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "false")
    devices.hold(["0"])
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "false"


def test_a_worker_without_gpus_sees_none():
    devices.hold([])
    assert devices.held() == ()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert "TF_FORCE_GPU_ALLOW_GROWTH" not in os.environ


@pytest.mark.parametrize(("first", "then"), [(["0"], ["1"]), ([], ["1"]), (["0", "1"], ["0"])])
def test_a_worker_never_goes_on_with_gpus_that_another_task_may_have(first, then):
    devices.hold(first)
    with pytest.raises(WorkerDevicesError, match=r"set spark\.python\.worker\.reuse to false"):
        devices.hold(then)
