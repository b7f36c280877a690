"""Score rows with a published model, in Arrow batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_hydrogen.contract.gpus import gpu_share
from airflow_hydrogen.contract.jobs import Engine, InferenceJob, OnBadRow, Run, Sink, Source
from airflow_hydrogen.contract.reports import InferenceReport
from airflow_hydrogen.links.locations import OutputLocationLink, SparkLogLink, SparkUILink
from airflow_hydrogen.operators import source_checks
from airflow_hydrogen.operators.arguments import (
    as_template,
    refuse_callable,
    to_batch_rows,
    to_limit,
    to_mapping,
    to_sink,
    to_source,
    to_stream,
    to_text,
    to_texts,
    to_uri,
)
from airflow_hydrogen.operators.assets import KEY_DELIMITER
from airflow_hydrogen.operators.base import HydrogenOperator
from airflow_hydrogen.operators.gang_conf import scoring_conf

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk.definitions.context import Context

    from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook
    from airflow_hydrogen.operators.lineage import Surroundings


class ArrowInferenceOperator(HydrogenOperator):
    """Score a table, a partition of it or a stream: one model load per Python worker, Arrow batches.

    The run replaces exactly its partition of the sink, atomically, or each of those that the sink declares;
    of a stream every micro-batch does. The task returns the URI of the output; the XCom `report` holds rows,
    seconds, rows per second and versions.

    Args:
        model_uri: a published model, such as the return value of a HorovodTrainOperator, or an alias of one:
            `s3://models/late/production.alias` (templated).
        source: the rows to score, a `Source` (templated).
        sink: where they go, a `Sink` (templated).
        prepare: `package.module:function`, called on Spark's driver with (spark, dataframe, **prepare_kwargs)
            (templated).
        prepare_kwargs: keyword arguments of `prepare`; JSON (templated).
        predictor: `package.module:function` that loads the model and returns its predict function, for
            frameworks that this package does not know (templated).
        engine: what runs the model: "tensorflow", "onnx", "torch", or "auto": ONNX Runtime where the model
            was published for it and it is installed, else the model's own framework (templated).
        keep_columns: columns of the source to keep beside the predictions; None keeps all (templated).
        output_columns: output name of the model -> name of the column (templated).
        batch_rows: rows of one call of the model, or "auto": each worker tries some on its first rows, and
            goes on with the fastest that fits in memory (templated).
        on_bad_row: what becomes of rows that the model cannot score: nulls, lists of another length, numbers
            out of range, exceptions of the model. "fail" fails the task, "drop" leaves them out, "quarantine"
            writes them to a table of their own, with the reason (templated).
        quarantine: that table, a `Sink` without partition: it has the sink's. None: the sink's name with
            `_quarantine` behind it (templated).
        max_bad_rows: fail the task, and replace nothing, where more rows than that are bad: a number, or a
            share between 0 and 1. None: no limit. Of a stream, in one micro-batch (templated).
        gpus_per_task: GPUs of a task that scores, which sees no others, or a part of one: with 0.25 four
            tasks share a GPU. Tasks that prepare hold none (templated).
        trigger: of a stream: "available_now" scores what is new and ends, an interval such as "30 seconds"
            goes on until something ends it (templated).
        checkpoint_uri: of a stream: a folder for its position, of this stream alone (templated).
        max_rows_per_trigger: of a stream from Kafka: how many messages make a micro-batch; None: all that are
            there (templated).
        stop_after_s: of a stream: seconds after which it ends between two micro-batches; None: never
            (templated).
        kwargs: options of SparkSubmitOperator and of every operator.
    """

    template_fields: Sequence[str] = (
        *HydrogenOperator.template_fields,
        "model_uri",
        "source",
        "sink",
        "prepare",
        "prepare_kwargs",
        "predictor",
        "engine",
        "keep_columns",
        "output_columns",
        "batch_rows",
        "on_bad_row",
        "quarantine",
        "max_bad_rows",
        "gpus_per_task",
        "trigger",
        "checkpoint_uri",
        "max_rows_per_trigger",
        "stop_after_s",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **HydrogenOperator.template_fields_renderers,
        "source": "json",
        "sink": "json",
        "quarantine": "json",
        "prepare_kwargs": "json",
        "output_columns": "json",
    }
    operator_extra_links: Collection[Any] = (SparkUILink(), SparkLogLink(), OutputLocationLink())
    ui_color = "#cfe3ee"

    def __init__(
        self,
        *,
        model_uri: str,
        source: Source | Mapping[str, Any],
        sink: Sink | Mapping[str, Any],
        prepare: str | None = None,
        prepare_kwargs: Mapping[str, Any] | None = None,
        predictor: str | None = None,
        engine: Engine = "auto",
        keep_columns: Sequence[str] | None = None,
        output_columns: Mapping[str, str] | None = None,
        batch_rows: int | str = 16384,
        on_bad_row: OnBadRow = "fail",
        quarantine: Sink | Mapping[str, Any] | None = None,
        max_bad_rows: float | str | None = None,
        gpus_per_task: float | str = 0,
        trigger: str | None = None,
        checkpoint_uri: str | None = None,
        max_rows_per_trigger: int | str | None = None,
        stop_after_s: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        refuse_callable("prepare", prepare)
        refuse_callable("predictor", predictor)
        if isinstance(gpus_per_task, (int, float)):  # else a template, or what another task returns
            gpu_share("gpus_per_task", gpus_per_task)
        self.model_uri = model_uri
        self.source = as_template(source)
        self.sink = as_template(sink)
        self.prepare = prepare
        self.prepare_kwargs = prepare_kwargs
        self.predictor = predictor
        self.engine = engine
        self.keep_columns = keep_columns
        self.output_columns = output_columns
        self.batch_rows = batch_rows
        self.on_bad_row = on_bad_row
        self.quarantine = as_template(quarantine)
        self.max_bad_rows = max_bad_rows
        self.gpus_per_task = gpus_per_task
        self.trigger = trigger
        self.checkpoint_uri = checkpoint_uri
        self.max_rows_per_trigger = max_rows_per_trigger
        self.stop_after_s = stop_after_s

    @property
    def output_location(self) -> str:
        """The folder of the partition that the run replaces, or of the table; "" where there is none."""
        sink = to_sink("sink", self.sink)
        return sink.output if sink.uri else ""

    def _shared_report_base(self) -> str:
        # Beside the table, not in it.
        return to_sink("sink", self.sink).home or to_uri("model_uri", self.model_uri)

    def _build_job(self, run: Run | None, report_uri: str, cluster_mode: bool) -> InferenceJob:
        return InferenceJob(
            model_uri=to_uri("model_uri", self.model_uri),
            source=to_source("source", self.source),
            sink=to_sink("sink", self.sink),
            report_uri=report_uri,
            prepare=self.prepare or None,
            prepare_kwargs=to_mapping("prepare_kwargs", self.prepare_kwargs),
            predictor=self.predictor or None,
            engine=self.engine,
            keep_columns=(None if self.keep_columns is None else to_texts("keep_columns", self.keep_columns)),
            output_columns={
                name: to_text(f"output_columns[{name!r}]", column)
                for name, column in to_mapping("output_columns", self.output_columns).items()
            },
            batch_rows=to_batch_rows("batch_rows", self.batch_rows),
            on_bad_row=self.on_bad_row,
            quarantine=None if self.quarantine is None else to_sink("quarantine", self.quarantine),
            max_bad_rows=to_limit("max_bad_rows", self.max_bad_rows),
            gpus_per_task=gpu_share("gpus_per_task", self.gpus_per_task),
            run=run,
            stream=to_stream(self.trigger, self.checkpoint_uri, self.max_rows_per_trigger, self.stop_after_s),
        )

    def _resource_conf(self, master: str) -> dict[str, str]:
        return scoring_conf(
            master,
            gpus_per_task=gpu_share("gpus_per_task", self.gpus_per_task),
            executor_cores=self._executor_cores,
            given=self.conf or {},
        )

    def _check_data(self, context: Context, job: InferenceJob, hook: HydrogenSparkSubmitHook) -> None:
        source_checks.check(job, hook, self.env_vars, first_try=context["ti"].try_number == 1)

    def _code_arguments(self) -> list[tuple[str, str | Callable[..., Any]]]:
        named = (("prepare", self.prepare), ("predictor", self.predictor))
        return [(argument, code) for argument, code in named if code]

    def _result(self, report: InferenceReport) -> Any:
        return report.output_uri

    def _texts(self) -> list[Any]:
        return [
            *super()._texts(),
            self.source,
            self.sink,
            self.quarantine,
            self.keep_columns,
            self.output_columns,
        ]

    def _location(self, report: InferenceReport) -> str | None:
        return report.output_uri if to_sink("sink", self.sink).uri else None

    def _lineage(self, report: InferenceReport | None, around: Surroundings) -> OperatorLineage:
        from airflow_hydrogen.operators.lineage import of_scoring

        return of_scoring(self._build_job(None, "", False), report, around)

    def _asset_extra(self, report: InferenceReport) -> dict[str, Any]:
        told = [
            "output_uri",
            "model_uri",
            "model_version",
            "model_alias",
            "source",
            "rows",
            "rows_in",
            "rows_dropped",
            "rows_quarantined",
            "quarantine_uri",
            *(["partitions"] if report.partitions else []),
            *(["stream"] if report.stream else []),
        ]
        return {name: getattr(report, name) for name in told}

    def _partition_keys(self, report: InferenceReport) -> list[str]:
        partitions = to_sink("sink", self.sink).with_partitions().partitions
        return [KEY_DELIMITER.join(partition.values()) for partition in partitions]
