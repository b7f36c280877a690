"""`@task.horovod`: a TaskFlow function that every rank of a gang runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import DecoratedOperator, TaskDecorator, task_decorator_factory

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.values import require_json
from airflow_hydrogen.operators.train import HorovodTrainOperator


class _HorovodDecoratedOperator(DecoratedOperator, HorovodTrainOperator):
    """A HorovodTrainOperator whose entry point is the decorated function."""

    custom_operator_name = "@task.horovod"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(field for field in HorovodTrainOperator.template_fields if field != "entrypoint_kwargs"),
    )
    template_fields_renderers = {  # noqa: RUF012 - DecoratedOperator declares it so
        **HorovodTrainOperator.template_fields_renderers,
        **DecoratedOperator.template_fields_renderers,
    }
    shallow_copy_attrs: Sequence[str] = ("python_callable", "_callable")

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Sequence[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "entrypoint_kwargs" in kwargs:
            raise TypeError("@task.horovod takes no entrypoint_kwargs: call the function with its arguments")
        super().__init__(
            kwargs_to_upstream={"entrypoint": python_callable},
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            **kwargs,
        )

    def _keyword_arguments(self) -> dict[str, Any]:
        return bind_arguments(self.python_callable, self.op_args, self.op_kwargs)


def bind_arguments(
    function: Callable[..., Any], op_args: Collection[Any], op_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by their names, as they can travel.

    Args:
        function: the decorated function.
        op_args: its positional arguments, rendered.
        op_kwargs: its keyword arguments, rendered.

    Raises:
        InvalidJobError: an argument is missing, or cannot be given by name.
        KwargsError: an argument is not JSON.
    """
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*op_args, **op_kwargs)
    except TypeError as error:
        raise InvalidJobError(
            f"{function.__name__}{signature}: {error}; the cluster has no Airflow context, so pass every "
            f"argument in the call, for example {function.__name__}(ds='{{{{ ds }}}}')"
        ) from None
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
            raise InvalidJobError(
                f"{function.__name__}{signature}: {name!r} cannot be given by name; the arguments of a "
                "training travel by their names"
            )
        arguments.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    for name, value in arguments.items():
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes, list, tuple)):
            arguments[name] = list(value)  # the lazy list of a mapped task's results
        require_json(f"argument {name!r} of {function.__name__}", arguments[name])
    return arguments


def horovod_task(
    python_callable: Callable[..., Any] | None = None,
    multiple_outputs: bool | None = None,
    **kwargs: Any,
) -> TaskDecorator:
    """Train with the decorated function: `@task.horovod(np=2, train_data=..., model_uri=...)`.

    Args:
        python_callable: the function that every rank runs. It travels by value; its arguments, XComs among
            them, must be JSON when the task runs. Airflow's context does not reach it.
        multiple_outputs: one XCom for each key of a dict that the function returns.
        kwargs: arguments of HorovodTrainOperator, but not its entry point's.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=_HorovodDecoratedOperator,
        **kwargs,
    )
