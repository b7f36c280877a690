"""Publish a model that was trained elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowException, BaseHook, BaseOperator

from airflow_hydrogen.contract.errors import ApplicationError, InvalidJobError
from airflow_hydrogen.contract.jobs import Run
from airflow_hydrogen.contract.publications import PublishJob, PublishReport
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.hooks import buckets, stores
from airflow_hydrogen.hooks.programs import Program, write_secretly
from airflow_hydrogen.links.locations import ModelLocationLink
from airflow_hydrogen.operators.arguments import finite, to_columns, to_mapping, to_text, to_texts, to_uri
from airflow_hydrogen.operators.assets import emit_events
from airflow_hydrogen.operators.base import run_of, with_airflows_errors

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk.definitions.context import Context

_PROGRAM = "airflow_hydrogen.runtime.publication"
_NEEDS = ("numpy", "pyarrow")


class PublishModelOperator(BaseOperator):
    """Publish a model that was trained elsewhere, so that it scores as one that was trained here.

    It is an ONNX file, a program of torch.export, a TensorFlow SavedModel or a Keras file.

    It runs on the Airflow worker, in a process of its own and without Spark: that process loads the model as
    a scorer does, and scores made-up rows, before anything is published. The task returns the model's URI.
    The XCom `report` holds its version, inputs, outputs and metrics. A retry publishes nothing twice.

    Args:
        model: the file or the folder of the model, a path on the worker or a URI (templated).
        model_uri: where it is published; the model that lies there is replaced, at once, and a folder that
            holds other things is refused (templated).
        columns: the columns of the model's one input, in their order, or input -> column or columns; see
            `airflow_hydrogen.runtime.publish_model` (templated).
        outputs: which of the model's outputs become columns; None: all of them (templated).
        example: column -> value of one real row, for models that refuse made-up ones (templated).
        alias: an alias that names the model once it is published (templated).
        metrics: what is known of the model, such as {"auc": 0.91} (templated).
        aws_conn_id: the connection, of type `aws`, with the keys and the endpoint of S3; None: those that the
            worker's environment has (templated).
        kwargs: options of every operator.
    """

    template_fields: Sequence[str] = (
        *("model", "model_uri", "columns", "outputs", "example", "alias", "metrics", "aws_conn_id"),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "columns": "json",
        "example": "json",
        "metrics": "json",
    }
    operator_extra_links: Collection[Any] = (ModelLocationLink(),)
    ui_color = "#f3e3c8"

    def __init__(
        self,
        *,
        model: str | os.PathLike[str],
        model_uri: str,
        columns: Sequence[Any] | Mapping[str, Any] | str,
        outputs: Sequence[str] | None = None,
        example: Mapping[str, Any] | None = None,
        alias: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        aws_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = os.fspath(model) if isinstance(model, os.PathLike) else model
        self.model_uri = model_uri
        self.columns = columns
        self.outputs = outputs
        self.example = example
        self.alias = alias
        self.metrics = metrics
        self.aws_conn_id = aws_conn_id
        self._program: Program | None = None
        self._report: PublishReport | None = None

    @property
    def output_location(self) -> str:
        """Where the model is published."""
        return to_uri("model_uri", self.model_uri)

    def execute(self, context: Context) -> Any:
        """Publish the model and answer with its URI.

        Raises:
            AirflowFailException: running the same job again cannot help; there is no retry.
            AirflowException: any other failure.
        """
        return with_airflows_errors(lambda: self._publish(context))

    def on_kill(self) -> None:
        """End the process, and what it has started; the model that lies there stays."""
        if self._program is not None:
            self.log.info("Ending the publication")
            self._program.kill()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage:
        """Tell Airflow's OpenLineage provider what was read and written.

        Args:
            task_instance: Airflow's.
        """
        # It needs the provider, which is there if somebody asks.
        from airflow_hydrogen.operators.lineage import of_publication

        return of_publication(to_uri("model", self.model), self.output_location, self._report)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage:
        """The same of a task that failed; the provider itself adds the error."""
        return self.get_openlineage_facets_on_complete(task_instance)

    def _publish(self, context: Context) -> str:
        _require_installed()
        run = run_of(context)
        self._report = None
        access = self._s3_access()
        with tempfile.TemporaryDirectory(prefix="airflow-hydrogen-") as name:
            folder = Path(name)
            job = self._job(run, str(folder / "report.json"), access)
            if access is not None:
                buckets.require_open(access, job.buckets, same_host=True)
            self.log.info("Publishing %s at %s", job.model, job.model_uri)
            report = self._run(job, folder)
        self._report = report
        what = "is there already, from an earlier try" if report.reused else "is published"
        self.log.info("The %s model %s: %s", report.framework, what, report.model_uri)
        if self.do_xcom_push:
            document = dataclasses.asdict(report)
            del document["failure"]
            context["ti"].xcom_push(key="report", value=finite(document))
        extra = {
            "model_uri": report.model_uri,
            "model_version": report.model_version,
            "model_alias": report.alias,
            "metrics": dict(report.metrics),
            "run": dataclasses.asdict(run),
        }
        emit_events(context, self.outlets, report.model_uri, extra)
        return str(report.model_uri)

    def _job(self, run: Run, report_uri: str, access: S3Access | None) -> PublishJob:
        return PublishJob(
            model=to_uri("model", self.model),
            model_uri=self.output_location,
            columns=to_columns("columns", self.columns),
            outputs=None if self.outputs is None else to_texts("outputs", self.outputs),
            example=None if self.example is None else to_mapping("example", self.example),
            alias=None if self.alias is None else to_uri("alias", self.alias),
            metrics=to_mapping("metrics", self.metrics),
            run=run,
            report_uri=report_uri,
            s3=access,
        )

    def _run(self, job: PublishJob, folder: Path) -> PublishReport:
        job_file = folder / "job.json"
        write_secretly(job_file, job.dumps())
        # What it leaves there, killed, is removed with the folder.
        program = Program(_PROGRAM, str(job_file), {**os.environ, "TMPDIR": str(folder)})
        self._program = program
        try:
            code = program.run(lambda line: self.log.info("%s", line))
        finally:
            self._program = None
        if program.killed:
            raise AirflowException("The task was ended while the model was published")
        report_file = Path(str(job.report_uri))
        if not report_file.is_file():
            raise ApplicationError(
                f"the publication ended with exit code {code} and without a report. Its last lines:\n"
                f"{program.log_tail}",
                retryable=True,
            )
        report = PublishReport.loads(report_file.read_text())
        if report.failure is not None:
            raise report.failure.to_error()
        return report

    def _s3_access(self) -> S3Access | None:
        if self.aws_conn_id is None:
            return None
        return stores.s3_access(to_text("aws_conn_id", self.aws_conn_id), BaseHook.get_connection)


def _require_installed() -> None:
    """Find out that the process could not even say what it lacks."""
    if missing := [module for module in _NEEDS if importlib.util.find_spec(module) is None]:
        raise InvalidJobError(
            f"{' and '.join(missing)} is not installed on this Airflow worker, where a model is tried before "
            "it is published: install airflow-hydrogen[airflow,spark,onnx], [airflow,spark,torch] "
            "for a program of PyTorch, or [airflow,spark,tensorflow] for a SavedModel"
        )
