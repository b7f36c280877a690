"""Texts that real ranks raised when a peer was killed in the middle of a collective of 64 or 384 MB."""

from __future__ import annotations

import pytest

from airflow_hydrogen.contract.errors import GangLostError, RankFailedError
from airflow_hydrogen.runtime.rank.failures import (
    RankFailure,
    first_cause,
    is_death_of_a_rank,
    is_program_error,
    lost_peer,
)

SHUT_DOWN = (
    "Horovod has been shut down. This was caused by an exception on one of the ranks or an attempt to "
    "allreduce, allgather or broadcast a tensor after one of the ranks finished execution. If the shutdown "
    "was caused by an exception, you should see the exception in the log before the first shutdown message."
)
_TCP = "/tmp/horovod/third_party/compatible17_gloo/gloo/transport/tcp"
CLOSED = f"[{_TCP}/pair.cc:627] Connection closed by peer [127.0.0.1]:4529"
RESET = f"[{_TCP}/pair.cc:618] Read error [127.0.0.1]:21418: Connection reset by peer"
EAGER = (
    "{{function_node __wrapped__HorovodAllreduce_device_/job:localhost/replica:0/task:0/device:CPU:0}} "
    "%s [Op:HorovodAllreduce] name: g"
)
GRAPH = "{{function_node __inference_<lambda>_10}} %s\n\t [[{{node g}}]] [Op:__inference_<lambda>_10]"
KERAS = (
    "Graph execution error:\n\nDetected at node hydrogen_gradient_0_0 defined at (most recent call last):\n"
    '  File "train.py", line 40, in main\n\n%s\n\t [[{{node hydrogen_gradient_0_0}}]] '
    "[Op:__inference_multi_step_on_iterator_415]"
)
WRITE = f"[{_TCP}/pair.cc:395] writev [10.0.0.2]:4000: Broken pipe"
TIMEOUT = f"[{_TCP}/unbound_buffer.cc:81] Timed out waiting 30000ms for recv operation to complete"
ENFORCE = f"[enforce fail at {_TCP}/pair.cc:928] state_ >= CONNECTED. 5 vs 3. Pair is not connected (CLOSED)"


class UnknownError(Exception):
    """Stands for TensorFlow's."""


class HorovodInternalError(RuntimeError):
    """Stands for Horovod's, which wraps everything under PyTorch."""


@pytest.mark.parametrize("frame", [EAGER, GRAPH, KERAS], ids=["eager", "graph", "keras"])
@pytest.mark.parametrize(
    "text",
    [SHUT_DOWN, CLOSED, RESET, WRITE, TIMEOUT, ENFORCE, "Application timeout caused pair closure"],
)
def test_a_peer_that_is_gone_is_recognised_whatever_wraps_it(text, frame):
    said = lost_peer(UnknownError(frame % text))
    assert said is not None
    assert text in said
    assert "\n" not in said
    assert lost_peer(HorovodInternalError(text)) == text
    assert lost_peer(RuntimeError(text)) == text


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the cause"),
        ValueError(),
        ConnectionResetError(104, "Connection reset by peer"),
        UnknownError("{{function_node x}} JIT compilation failed. [Op:Abs]"),
        HorovodInternalError(
            "Mismatched allreduce tensor shapes: One rank sent a tensor of shape [3], but another rank sent "
            "a tensor of shape [4]."
        ),
        HorovodInternalError("Allgather is not supported with Join at this time."),
        FileNotFoundError(2, "No such file or directory", "/data/gloo/pair.cc"),
    ],
    ids=repr,
)
def test_what_is_not_of_horovod_or_gloo_is_the_programs_own(error):
    assert lost_peer(error) is None


def wrapped(how):
    """A lost peer's error inside an error of the program."""
    try:
        try:
            raise UnknownError(EAGER % RESET)
        except UnknownError as error:
            if how == "while handled":
                {}["checkpoint"]
            raise RuntimeError("training failed") from (error if how == "because of" else None)
    except Exception as error:
        return error


def test_what_a_lost_peer_leads_to_is_a_consequence_too():
    assert lost_peer(wrapped("because of")) == EAGER % RESET
    assert lost_peer(wrapped("while handled")) == EAGER % RESET


def test_unless_the_program_says_that_it_is_another_matter():
    assert lost_peer(wrapped("from None")) is None


def failure(rank, kind, error_type="builtins.ValueError"):
    return RankFailure(rank, f"host-{rank}", kind, f"failure of {rank}", error_type)


def test_a_lost_peer_never_hides_the_error_that_made_it():
    failures = [failure(0, "peer"), failure(2, "peer"), failure(1, "main")]
    cause = first_cause(failures)
    assert cause.rank == 1
    assert is_program_error(cause.to_error())


@pytest.mark.parametrize(
    ("kind", "error_type", "expected"),
    [("process", None, True), ("main", "builtins.ValueError", False), ("stall", None, False)],
)
def test_the_death_of_a_rank_is_told_from_errors_and_from_other_faults(kind, error_type, expected):
    assert is_death_of_a_rank(failure(1, kind, error_type).to_error()) is expected


def test_a_death_after_which_tasks_may_still_be_there_is_not_one_of_a_rank_alone():
    error = failure(1, "process", None).to_error()
    error.tasks_ended = False
    assert not is_death_of_a_rank(error)


def test_where_all_have_only_lost_their_peers_a_restart_may_help():
    error = first_cause([failure(0, "peer"), failure(1, "peer")]).to_error("rank 2 on host-2 (12 s)")
    assert isinstance(error, GangLostError)
    assert not isinstance(error, RankFailedError)
    assert not is_program_error(error)
    assert str(error) == (
        "rank 0 on host-0 lost its peers, and none of them said why; not heard any more: rank 2 on host-2 "
        "(12 s): failure of 0"
    )
