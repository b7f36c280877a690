"""Horovod's collectives, as this package uses them.

Horovod matches the tensors of the ranks by the names of their operations. Left to itself it derives them
from layer names, and those are counted per process: a model more on rank 0 and the ranks wait for each other
for ever. Hence every name here is ours.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.rank.context import get_context


def size() -> int:
    """The number of ranks of the gang; 1 where there is none."""
    return get_context().size


def rank() -> int:
    """The rank of this process."""
    return get_context().rank


def horovod() -> Any:
    """`horovod.tensorflow`, initialised. Every rank must get here: the first call waits for the others.

    Raises:
        OptimizerError: Horovod has not started with the ranks that the gang has.
    """
    import horovod.tensorflow as hvd

    hvd.init()  # does nothing the second time
    if hvd.size() != size():
        raise OptimizerError(
            f"Horovod started with {hvd.size()} ranks, but the gang has {size()}: call hvd.init() without "
            "arguments, and leave the HOROVOD_* variables alone"
        )
    return hvd


def broadcast_variables(variables: Sequence[Any], root_rank: int = 0) -> None:
    """Give every rank the values of one rank. `variables` are Keras's, in the same order on every rank.

    Does what `hvd.broadcast_variables` does.
    """
    if size() == 1 or not variables:
        return
    horovod()
    require_same(f"the model has {len(variables)} variables", len(variables))
    require_same_shapes(variables)
    assign_from([variable.value for variable in variables], root_rank, "hydrogen_broadcast")


def assign_from(variables: Sequence[tf.Variable], root_rank: int, name: str, **options: Any) -> Any:
    """Assign one rank's values on every rank, at once or, inside of a graph, by the operation returned.

    Args:
        variables: of TensorFlow; as many, of the same shapes, on every rank.
        root_rank: whose values.
        name: the first part of the operations' names.
        options: of `hvd.broadcast`.
    """
    import horovod.tensorflow as hvd

    def assign() -> list[Any]:
        return [
            variable.assign(
                hvd.broadcast(variable, root_rank, name=f"{name}_{number}", ignore_name_scope=True, **options)
            )
            for number, variable in enumerate(variables)
        ]

    if not tf.executing_eagerly():
        return tf.group(*assign())
    tf.function(assign, autograph=False).get_concrete_function()()  # in a graph they travel together
    return None


def broadcast_numbers(numbers: Sequence[float]) -> list[float]:
    """Rank 0's numbers, on every rank. As many on every rank."""
    if size() == 1:
        return list(numbers)
    tensor = tf.constant(numbers, dtype=tf.float64)
    hvd = horovod()
    shared = hvd.broadcast(tensor, root_rank=0, name="hydrogen_numbers", ignore_name_scope=True)
    return [float(number) for number in shared.numpy()]


def broadcast_json(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if size() == 1:
        return value
    text = json.dumps(value).encode() if rank() == 0 else b""
    length = int(broadcast_numbers([len(text)])[0])
    tensor = tf.constant(np.frombuffer(text.ljust(length), dtype=np.uint8))
    shared = horovod().broadcast(tensor, root_rank=0, name="hydrogen_json", ignore_name_scope=True)
    return json.loads(shared.numpy().tobytes())


def average(numbers: Sequence[float]) -> list[float]:
    """The mean over the ranks, number by number. As many, in the same order, on every rank."""
    if size() == 1 or not numbers:
        return list(numbers)
    tensor = tf.constant(numbers, dtype=tf.float64)
    hvd = horovod()
    means = hvd.allreduce(tensor, op=hvd.Average, name="hydrogen_average", ignore_name_scope=True)
    return [float(number) for number in means.numpy()]


def gather(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Every rank's rows (shape `[n, ...]`), one rank after the other: `[size * n, ...]`."""
    if size() == 1:
        return rows
    tensor = tf.constant(rows)
    gathered = horovod().allgather(tensor, name="hydrogen_gather", ignore_name_scope=True).numpy()
    return np.asarray(gathered)


def differing(numbers: Sequence[int]) -> list[int]:
    """Where the ranks' numbers are not the same, as indices; on every rank the same. As many on every rank.

    Costs one number a rank where all are the same.
    """
    if size() == 1 or len(set(gather(np.array([_crc(list(numbers))], dtype=np.int64)).tolist())) == 1:
        return []
    everyone = gather(np.array([numbers], dtype=np.int64))
    return [int(number) for number in np.flatnonzero((everyone != everyone[0]).any(axis=0))]


def first_rank_value(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rank 0's array, on every rank. Of the same shape and type on every rank."""
    if size() == 1:
        return value
    tensor = tf.constant(value)
    shared = horovod().broadcast(tensor, root_rank=0, name="hydrogen_value", ignore_name_scope=True)
    return np.asarray(shared.numpy())


def gather_json(value: Any) -> list[Any]:
    """Every rank's value."""
    if size() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
    lengths = gather(np.array([len(text)], dtype=np.int64)).tolist()
    everyone = gather(text).tobytes()
    ends = np.cumsum(lengths).tolist()
    return [json.loads(everyone[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def _crc(value: Any) -> int:
    return zlib.crc32(repr(value).encode())


def require_same_shapes(variables: Sequence[Any]) -> None:
    """Fail on every rank where the ranks' variables have different shapes or types.

    Raises:
        OptimizerError: they have.
    """
    kinds = [f"{variable.dtype}{list(variable.shape)}" for variable in variables]
    if others := differing([_crc(kind) for kind in kinds]):
        number = others[0]
        everyone = gather_json([variables[number].path, kinds[number]])
        raise OptimizerError(
            "the ranks have built different models: "
            + ", ".join(f"{path!r} is {kind} on rank {rank}" for rank, (path, kind) in enumerate(everyone))
        )


def require_same(what: str, number: int) -> None:
    """Fail on every rank where the ranks disagree, instead of waiting for tensors that nobody sends.

    Raises:
        OptimizerError: the ranks have different numbers.
    """
    numbers = gather(np.array([number], dtype=np.int64)).tolist()
    if len(set(numbers)) > 1:
        raise OptimizerError(
            f"{what} on rank {rank()}, but the ranks have {numbers}: every rank must build the same model, "
            "and resume from the same state"
        )
