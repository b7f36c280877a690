from __future__ import annotations

from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.runtime.gang.topology import assign_ranks


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=20))
def test_ranks_are_those_that_horovod_itself_would_assign(names: list[str]) -> None:
    order = list(dict.fromkeys(names))
    expected = get_host_assignments([HostInfo(name, names.count(name)) for name in order], len(names))
    fields = ("rank", "size", "local_rank", "local_size", "cross_rank", "cross_size")
    found = sorted(assign_ranks(names), key=lambda place: place.rank)
    assert [[getattr(place, f) for f in fields] for place in found] == [
        [getattr(slot, f) for f in fields] for slot in expected
    ]
