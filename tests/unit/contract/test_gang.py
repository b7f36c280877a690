from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.gang import GangOptions

options = st.builds(
    GangOptions,
    driver_log_verbosity=st.sampled_from(["all", "log_callback_only"]),
    start_timeout_s=st.floats(0.1, 1e5),
    stall_timeout_s=st.none() | st.floats(0.1, 1e5),
    max_restarts=st.integers(0, 100),
    min_np=st.none() | st.integers(1, 100),
    gpus_per_process=st.integers(0, 16),
    network_interface=st.none() | st.sampled_from(["eth0", "ib0"]),
    port_range=st.none() | st.sampled_from(["40000-40100", "1024-1024"]),
    fork=st.booleans() | st.sampled_from([("tensorflow",), ("torch", "my.layers")]),
)


@given(options)
def test_options_survive_the_way_through_json(found):
    assert GangOptions.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"driver_log_verbosity": "loud"}, "driver_log_verbosity must be 'all' or 'log_callback_only'"),
        ({"start_timeout_s": 0}, "start_timeout_s must be a number of seconds above 0, found 0"),
        ({"stall_timeout_s": "10"}, "stall_timeout_s must be a number of seconds above 0, found '10'"),
        ({"max_restarts": -1}, "max_restarts must be an integer of at least 0, found -1"),
        ({"max_restarts": True}, "max_restarts must be an integer"),
        ({"min_np": 0}, "min_np must be an integer of at least 1, found 0"),
        ({"gpus_per_process": 1.5}, "gpus_per_process must be an integer of at least 0, found 1.5"),
        ({"network_interface": " "}, "network_interface must be the name of an interface"),
        ({"port_range": "40000"}, "port_range must be 'first-last' within 1024-65535.*found '40000'"),
        ({"port_range": "40000-30000"}, "port_range must be"),
        ({"port_range": "80-90"}, "port_range must be"),
        ({"fork": "tensorflow"}, "fork must be True, False, or the names of modules .* found 'tensorflow'"),
        ({"fork": []}, r"fork must be .* found \[\]"),
        ({"fork": ["my-package"]}, r"fork must be .* found \['my-package'\]"),
        ({"fork": None}, "fork must be .* found None"),
        ({"restarts": 3}, "GangOptions has no restarts; expected driver_log_verbosity, "),
    ],
)
def test_options_that_cannot_work(given_options, message):
    with pytest.raises(InvalidJobError, match=message):
        GangOptions.from_dict(given_options)


def test_ports_are_inclusive():
    assert GangOptions(port_range="40000-40002").ports() == range(40000, 40003)
    assert GangOptions().ports() is None


def test_fewer_ranks_than_there_are():
    GangOptions(min_np=2).check_size(2)
    GangOptions(min_np=2).check_size(0)
    with pytest.raises(InvalidJobError, match="min_np must be at most np=2, found 3"):
        GangOptions(min_np=3).check_size(-2)
