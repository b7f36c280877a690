"""Train a model as a Horovod gang on Spark."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.contract.jobs import Entrypoint, Run, Source, TrainJob
from airflow_hydrogen.contract.pickling import callable_name, dumps_by_value
from airflow_hydrogen.contract.reports import TrainReport
from airflow_hydrogen.links.locations import ModelLocationLink, SparkLogLink, SparkUILink
from airflow_hydrogen.operators.arguments import (
    as_template,
    at_least,
    refuse_callable,
    to_integer,
    to_mapping,
    to_source,
    to_texts,
    to_uri,
)
from airflow_hydrogen.operators.base import HydrogenOperator
from airflow_hydrogen.operators.gang_conf import gang_conf

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_hydrogen.operators.lineage import Surroundings

SourceLike = Source | Mapping[str, Any]


class HorovodTrainOperator(HydrogenOperator):
    """Train on a Spark cluster: prepare data, train as a gang, publish the model.

    The task returns the model's URI, or what the entry point returned where that is not a model. The XCom
    `report` holds metrics, rows, seconds, rows per second and versions. A retry goes on from the last
    checkpoint; a task that is cleared trains again.

    Args:
        entrypoint: what every rank runs: a callable, `package.module:function` or the path of a script
            (templated).
        entrypoint_kwargs: keyword arguments of the function; JSON (templated).
        entrypoint_args: the command line of a script (templated).
        np: number of processes. 0: every task slot of the cluster; negative: that many on the driver's
            machine, without Spark's scheduling, for debugging (templated).
        train_data: rows of the dataset "train", a `Source` (templated, like all sources).
        validation_data: rows of the dataset "validation".
        datasets: further sources, by the name that `get_dataset_shard(name)` uses.
        prepare: `package.module:function`, called on Spark's driver with (spark, dataframe,
            **prepare_kwargs) for each dataset (templated).
        prepare_kwargs: keyword arguments of `prepare`; JSON (templated).
        model_uri: where the model is published. It must be the same for every try: do not put the try number
            or the time in it (templated).
        keep_checkpoints: keep the checkpoints in the published model.
        exports: publish the model for other engines as well: `("onnx",)` lets it be scored without
            TensorFlow, where it can be converted and predicts the same.
        cpus_per_process: CPU cores of a process, `spark.task.cpus` (templated).
        gpus_per_process: GPUs of a process, which sees no others. Spark assigns them where it knows of the
            cluster's GPUs; on this machine they go by local rank (templated).
        driver_log_verbosity: "all" shows every line of every rank in the task's log, "log_callback_only" what
            `report` is given.
        start_timeout_s: how long to wait for free task slots, and for all ranks to start, in seconds.
        stall_timeout_s: how long the gang may make no progress before it is started again, in seconds; None
            does not watch it.
        max_restarts: how often the gang is started again within the application, from its last checkpoint,
            when a process, an executor or a host is lost. Errors of the training code are final.
        min_np: go on with fewer processes, but at least so many, when slots are lost; None waits for all.
        network_interface: the interface over which the processes speak, such as "eth1"; None takes the one
            that routes to the other hosts.
        port_range: `first-last`, the ports on which a gang may listen, for firewalls.
        fork: fork the processes of a host from one that has imported the frameworks that the entry point
            names, or the modules that are named here; with False each starts from nothing.
        kwargs: options of SparkSubmitOperator and of every operator.
    """

    template_fields: Sequence[str] = (
        *HydrogenOperator.template_fields,
        "entrypoint",
        "entrypoint_kwargs",
        "entrypoint_args",
        "np",
        "train_data",
        "validation_data",
        "datasets",
        "prepare",
        "prepare_kwargs",
        "model_uri",
        "cpus_per_process",
        "gpus_per_process",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **HydrogenOperator.template_fields_renderers,
        "entrypoint_kwargs": "json",
        "train_data": "json",
        "validation_data": "json",
        "datasets": "json",
        "prepare_kwargs": "json",
    }
    shallow_copy_attrs: Sequence[str] = ("_callable",)
    operator_extra_links: Collection[Any] = (SparkUILink(), SparkLogLink(), ModelLocationLink())
    ui_color = "#f3e3c8"

    def __init__(
        self,
        *,
        entrypoint: str | Callable[..., Any],
        np: int | str,
        model_uri: str,
        entrypoint_kwargs: Mapping[str, Any] | None = None,
        entrypoint_args: Sequence[str] | None = None,
        train_data: SourceLike | None = None,
        validation_data: SourceLike | None = None,
        datasets: Mapping[str, SourceLike] | None = None,
        prepare: str | None = None,
        prepare_kwargs: Mapping[str, Any] | None = None,
        keep_checkpoints: bool = False,
        exports: Sequence[str] = (),
        cpus_per_process: int | str | None = None,
        gpus_per_process: int | str = 0,
        driver_log_verbosity: Literal["all", "log_callback_only"] = "all",
        start_timeout_s: float = 120.0,
        stall_timeout_s: float | None = 600.0,
        max_restarts: int = 2,
        min_np: int | None = None,
        network_interface: str | None = None,
        port_range: str | None = None,
        fork: bool | Sequence[str] = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        refuse_callable("prepare", prepare)
        # Airflow calls a callable in a template field to render it: the field holds the callable's name.
        self._callable = entrypoint if callable(entrypoint) else None
        self.entrypoint = callable_name(entrypoint) if callable(entrypoint) else entrypoint
        self.np = np
        self.model_uri = model_uri
        self.entrypoint_kwargs = entrypoint_kwargs
        self.entrypoint_args = entrypoint_args
        self.train_data = as_template(train_data)
        self.validation_data = as_template(validation_data)
        self.datasets = as_template(datasets)
        self.prepare = prepare
        self.prepare_kwargs = prepare_kwargs
        self.keep_checkpoints = keep_checkpoints
        self.exports = exports
        self.cpus_per_process = cpus_per_process
        self.gpus_per_process = gpus_per_process
        self.driver_log_verbosity = driver_log_verbosity
        self.start_timeout_s = start_timeout_s
        self.stall_timeout_s = stall_timeout_s
        self.max_restarts = max_restarts
        self.min_np = min_np
        self.network_interface = network_interface
        self.port_range = port_range
        self.fork = fork

    @property
    def output_location(self) -> str:
        """Where the model is published."""
        return to_uri("model_uri", self.model_uri)

    def _build_job(self, run: Run, report_uri: str, cluster_mode: bool) -> TrainJob:
        job = TrainJob(
            entrypoint=self._entrypoint(cluster_mode),
            entrypoint_kwargs=self._keyword_arguments(),
            entrypoint_args=to_texts("entrypoint_args", self.entrypoint_args or ()),
            np=to_integer("np", self.np),
            datasets=self._sources(),
            prepare=self.prepare or None,
            prepare_kwargs=to_mapping("prepare_kwargs", self.prepare_kwargs),
            model_uri=self.output_location,
            report_uri=report_uri,
            run=run,
            keep_checkpoints=self.keep_checkpoints,
            exports=self.exports,
            gang=GangOptions(
                driver_log_verbosity=self.driver_log_verbosity,
                start_timeout_s=self.start_timeout_s,
                stall_timeout_s=self.stall_timeout_s,
                max_restarts=self.max_restarts,
                min_np=self.min_np,
                gpus_per_process=at_least("gpus_per_process", self.gpus_per_process, 0),
                network_interface=self.network_interface,
                port_range=self.port_range,
                fork=self.fork,
            ),
        )
        return dataclasses.replace(job, code=self._code_hashes())

    def _keyword_arguments(self) -> dict[str, Any]:
        return to_mapping("entrypoint_kwargs", self.entrypoint_kwargs)

    def _entrypoint(self, cluster_mode: bool) -> Entrypoint:
        if self._callable is not None:
            return Entrypoint.pickled(dumps_by_value(self._callable), self.entrypoint)
        entrypoint = Entrypoint.parse(self.entrypoint)
        if entrypoint.kind == "script":
            script = self._code.script(entrypoint.value)
            # A driver on the cluster finds it among the files that were submitted.
            path = script.name if cluster_mode and script.is_file() else str(script)
            return Entrypoint(kind="script", value=path, name=entrypoint.name)
        return entrypoint

    def _code_hashes(self) -> dict[str, str]:
        named = {"entrypoint": self._callable or self.entrypoint, "prepare": self.prepare}
        return {part: found for part, code in named.items() if code and (found := self._code.hash(code))}

    def _sources(self) -> dict[str, Source]:
        found = to_mapping("datasets", self.datasets)
        for name, value in (("train", self.train_data), ("validation", self.validation_data)):
            if value is None:
                continue
            if name in found:
                raise InvalidJobError(f"{name}_data and datasets[{name!r}] are both given; leave one out")
            found[name] = value
        return {
            name: to_source(
                f"{name}_data" if name in ("train", "validation") else f"datasets[{name!r}]", value
            )
            for name, value in found.items()
        }

    def _code_arguments(self) -> list[tuple[str, str | Callable[..., Any]]]:
        prepare = [("prepare", self.prepare)] if self.prepare else []
        return [("entry point", self._callable or self.entrypoint), *prepare]

    def _not_on_connect(self) -> dict[str, str]:
        return {
            **super()._not_on_connect(),
            "cpus_per_process": "the server says how many cores a task has",
        }

    def _resource_conf(self, master: str) -> dict[str, str]:
        return gang_conf(
            master,
            np=to_integer("np", self.np),
            cpus_per_process=(
                None
                if self.cpus_per_process is None
                else at_least("cpus_per_process", self.cpus_per_process, 1)
            ),
            gpus_per_process=at_least("gpus_per_process", self.gpus_per_process, 0),
            executor_cores=self._executor_cores,
            num_executors=self._num_executors,
            total_executor_cores=self._total_executor_cores,
            given=self.conf or {},
        )

    def _result(self, report: TrainReport) -> Any:
        return report.model_uri if report.model_uri is not None else report.result

    def _texts(self) -> list[Any]:
        datasets = self.datasets.values() if isinstance(self.datasets, Mapping) else ()
        return [*super()._texts(), self.entrypoint_args, self.train_data, self.validation_data, *datasets]

    def _location(self, report: TrainReport) -> str | None:
        return report.model_uri

    def _lineage(self, report: TrainReport | None, around: Surroundings) -> OperatorLineage:
        from airflow_hydrogen.operators.lineage import of_training

        prepared = bool(self.prepare)
        return of_training(self._sources(), self.output_location, report, around, prepared=prepared)

    def _asset_extra(self, report: TrainReport) -> dict[str, Any]:
        return {
            "model_uri": report.model_uri,
            "model_version": report.model_version,
            "metrics": dict(report.metrics),
            "sources": dict(report.sources),
        }
