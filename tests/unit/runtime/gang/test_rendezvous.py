from __future__ import annotations

from airflow_hydrogen.runtime.gang.rendezvous import thread_environment


def test_a_rank_has_its_share_of_threads_whatever_spark_set_for_its_python_worker(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    assert thread_environment(4, None) == {"OMP_NUM_THREADS": "4", "TF_NUM_INTRAOP_THREADS": "4"}


def test_the_users_own_threads_win(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    assert thread_environment(4, "2") == {"OMP_NUM_THREADS": "2", "TF_NUM_INTRAOP_THREADS": "3"}
