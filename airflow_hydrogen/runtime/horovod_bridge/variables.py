"""Horovod's functions on variables, for those of Keras 3 as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow_hydrogen.contract.errors import OptimizerError
from airflow_hydrogen.runtime.horovod_bridge.serve import announce
from airflow_hydrogen.runtime.rank import context as contexts


def init(original: Callable[..., Any]) -> Callable[..., Any]:
    """`hvd.init`: outside a gang the context is what Horovod says, whoever has launched it."""

    def init(*args: Any, **kwargs: Any) -> Any:
        import horovod.tensorflow.mpi_ops as hvd

        original(*args, **kwargs)
        if contexts.get_context().size == 1 and hvd.size() > 1:  # mpirun sets no variables of Horovod's
            contexts.enter(
                contexts.TrainContext(
                    rank=hvd.rank(),
                    size=hvd.size(),
                    local_rank=hvd.local_rank(),
                    local_size=hvd.local_size(),
                    cross_rank=hvd.cross_rank(),
                    cross_size=hvd.cross_size(),
                )
            )

    return init


def broadcast_variables(original: Callable[..., Any]) -> Callable[..., Any]:
    """`hvd.broadcast_variables`, which leaves out the seeds of dropout: every rank keeps its own.

    Under Keras 2 they were no variables. With rank 0's, all ranks would drop out the same units.
    """

    def broadcast_variables(
        variables: Any, root_rank: int, process_set: Any = None, inplace: bool = False
    ) -> Any:
        import horovod.tensorflow.mpi_ops as hvd

        from airflow_hydrogen.runtime.keras import collectives
        from airflow_hydrogen.runtime.keras.names import name_of
        from airflow_hydrogen.runtime.keras.reduction import plain
        from airflow_hydrogen.runtime.keras.state import is_seed

        process_set = hvd.global_process_set if process_set is None else process_set
        variables = list(variables)
        shared = [plain(variable) for variable in variables if not is_seed(variable)]
        if not _has_keras(variables):
            return original(shared, root_rank, process_set, inplace)
        announce()
        if inplace:
            places: dict[str, list[Any]] = {}
            for variable in shared:
                places.setdefault(variable.device, []).append(variable)
            return [_in_place(held, root_rank, None, process_set) for held in places.values()]
        return collectives.assign_from(
            shared, root_rank, name_of("variables", shared), process_set=process_set
        )

    return broadcast_variables


def broadcast_in_place(original: Callable[..., Any]) -> Callable[..., Any]:
    """`hvd.broadcast_`."""

    def broadcast_(variables: Any, root_rank: int, name: str | None = None, process_set: Any = None) -> Any:
        import horovod.tensorflow.mpi_ops as hvd

        from airflow_hydrogen.runtime.keras.reduction import plain

        process_set = hvd.global_process_set if process_set is None else process_set
        variables = list(variables)
        if not _has_keras(variables):
            return original(variables, root_rank, name, process_set)
        announce()
        return _in_place([plain(variable) for variable in variables], root_rank, name, process_set)

    return broadcast_


def _has_keras(variables: list[Any]) -> bool:
    from airflow_hydrogen.runtime.keras.reduction import plain

    return any(plain(variable) is not variable for variable in variables)


def _in_place(variables: list[Any], root_rank: int, name: str | None, process_set: Any) -> list[Any]:
    """Horovod's operation, with names that are no variables' own."""
    import horovod.tensorflow.mpi_ops as hvd
    import tensorflow as tf

    from airflow_hydrogen.runtime.keras.names import name_of

    name = name or name_of("in_place", variables)
    done = hvd.MPI_LIB.horovod_broadcast_inplace_resource(
        [variable.handle for variable in variables],
        variable_names=[f"{name}_{number}" for number in range(len(variables))],
        name=name,
        root_rank=root_rank,
        process_set_id=process_set.process_set_id,
    )
    with tf.control_dependencies([done]):
        return [variable.read_value() for variable in variables]


def broadcast_global_variables(original: Callable[..., Any]) -> Callable[..., Any]:
    """`hvd.broadcast_global_variables`, which needs TensorFlow 1's collection of all variables."""

    def broadcast_global_variables(root_rank: int) -> Any:
        raise OptimizerError(
            "hvd.broadcast_global_variables() finds no variables under Keras 3, which keeps no list of all: "
            f"write hvd.broadcast_variables(model.variables, root_rank={root_rank}) and "
            f"hvd.broadcast_variables(optimizer.variables, root_rank={root_rank}), or give fit() "
            f"hvd.callbacks.BroadcastGlobalVariablesCallback({root_rank})"
        )

    return broadcast_global_variables
