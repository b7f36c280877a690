from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.runtime.gang.topology import assign_ranks, host_of

hosts = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=20)


@given(hosts)
def test_each_task_keeps_its_own_host_and_task_0_is_rank_0(names):
    places = assign_ranks(names)
    assert [place.host for place in places] == names
    assert places[0].rank == 0


def test_interleaved_hosts_are_grouped():
    assert [place.rank for place in assign_ranks(["a", "b", "a", "b", "a"])] == [0, 3, 1, 4, 2]


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.1:4000", "10.0.0.1"),
        ("[fe80::1]:4000", "fe80::1"),
        ("fe80::1:4000", "fe80::1"),
        ("worker", "worker"),
    ],
)
def test_host_is_split_at_the_last_colon(address, host):
    assert host_of(address) == host
