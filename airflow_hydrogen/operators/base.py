"""What training and scoring share: from arguments to a submitted job, and from its report to XComs."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
)

from airflow_hydrogen.clusters.endpoint import split_list
from airflow_hydrogen.contract import jobs, uris
from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.contract.connect_limits import require_possible
from airflow_hydrogen.contract.errors import (
    ApplicationError,
    HydrogenError,
    LocalServerError,
    NotOnConnectError,
    SharedStorageError,
)
from airflow_hydrogen.contract.jobs import Job, Run
from airflow_hydrogen.contract.reports import Report
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.drivers.cluster_mode import ClusterModeOperator
from airflow_hydrogen.drivers.hook import ClusterDriverHook
from airflow_hydrogen.drivers.tries import require_mode
from airflow_hydrogen.hooks import buckets, connectors, databases, report_files, stores
from airflow_hydrogen.hooks.connect import SCHEME, HydrogenConnectHook, connection_of, is_connect
from airflow_hydrogen.hooks.connectors import Submission
from airflow_hydrogen.hooks.programs import write_secretly
from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook
from airflow_hydrogen.links.locations import SparkLogLink, SparkUILink, browsable_file
from airflow_hydrogen.operators import local_sessions, spark_logs
from airflow_hydrogen.operators.arguments import finite, to_text
from airflow_hydrogen.operators.assets import emit_events
from airflow_hydrogen.operators.code import JobCode
from airflow_hydrogen.operators.describe import describe_job, describe_report
from airflow_hydrogen.operators.hook_options import HOOK_OPTIONS
from airflow_hydrogen.operators.packing import pack_project, pack_runtime
from airflow_hydrogen.operators.templates import render_as_text, renders_natively

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk.definitions.context import Context

    from airflow_hydrogen.operators.lineage import Surroundings

_APPLICATION = "from airflow_hydrogen.runtime.__main__ import main\n\nmain()\n"
_OURS = ("application", "application_args", "java_class")


class HydrogenOperator(ClusterModeOperator):
    """Base of the operators that run this package's application on Spark.

    Args:
        name: the Spark application's name (templated).
        spark_log_uri: folder for Spark's whole log, one file for each try; None: a hidden file beside the
            model or the scores (templated).
        spark_log_level: of Spark's lines in the task's log, such as "INFO"; None: warnings and errors.
        aws_conn_id: the connection, of type `aws`, with the keys and the endpoint of S3 for Spark, scoring
            workers and ranks; None: each of them finds its own (templated).
        kwargs: options of ClusterModeOperator, of SparkSubmitOperator and of every operator, but not
            application, application_args and java_class: the application is this package's own.
    """

    template_fields: Sequence[str] = (*ClusterModeOperator.template_fields, "spark_log_uri", "aws_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"conf": "json", "env_vars": "json"}

    def __init__(
        self,
        *,
        name: str = "airflow-hydrogen.{{ task_instance_key_str }}",
        spark_log_uri: str | None = None,
        spark_log_level: str | None = None,
        aws_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        if refused := [option for option in _OURS if option in kwargs]:
            raise TypeError(
                f"{type(self).__name__} takes no {', '.join(refused)}: it submits an application of its own"
            )
        super().__init__(name=name, **kwargs)
        self.spark_log_uri = spark_log_uri
        self.spark_log_level = spark_log_level
        self.aws_conn_id = aws_conn_id
        self._connection: dict[str, Any] | None = None
        self._packed: dict[str, Any] = {}
        self._connectors: dict[str, Any] = {}
        self._on_spark_ui: Callable[[str], None] | None = None
        self._report_place: tuple[str, str] | None = None
        self._s3: S3Access | None = None
        self._spark_log: str | None = None
        self._report: Report | None = None
        self._access: ConnectAccess | None = None

    # --- what an operator is made of ---------------------------------------------------------------------

    @property
    @abstractmethod
    def output_location(self) -> str:
        """The model or the scores, as the job names them."""

    @property
    def spark_log_location(self) -> str | None:
        """Where Spark's whole log goes, once a driver is known."""
        return self._spark_log

    def _shared_report_base(self) -> str:
        """What the report of a driver on the cluster, and Spark's log, lie beside."""
        return self.output_location

    @abstractmethod
    def _build_job(self, run: Run, report_uri: str, cluster_mode: bool) -> Job:
        """Make the job of the rendered arguments, or raise InvalidJobError."""

    @abstractmethod
    def _code_arguments(self) -> list[tuple[str, str | Callable[..., Any]]]:
        """Argument and value of all code that the job names: import paths, scripts and callables."""

    @abstractmethod
    def _result(self, report: Any) -> Any:
        """The task's return value."""

    @abstractmethod
    def _location(self, report: Any) -> str | None:
        """Where the model or the scores are; None where there are none."""

    @abstractmethod
    def _lineage(self, report: Any, around: Surroundings) -> OperatorLineage:
        """What was read and written; without a report, what was to be."""

    @abstractmethod
    def _asset_extra(self, report: Any) -> dict[str, Any]:
        """What the events of outlet assets say, besides the run."""

    def _partition_keys(self, report: Any) -> Sequence[str]:
        """The partitions that were written, as Airflow calls them; none where they are not many."""
        return ()

    def _s3_access(self) -> S3Access | None:
        if self.aws_conn_id is None:
            return None
        named = to_text("aws_conn_id", self.aws_conn_id)
        return stores.s3_access(named, HydrogenSparkSubmitHook.get_connection)

    def _check_data(self, context: Context, job: Any, hook: HydrogenSparkSubmitHook) -> None:
        """Look at what the job reads before cluster time is spent, or raise what Spark's driver would."""
        return

    def _resource_conf(self, master: str) -> dict[str, str]:
        """Spark settings that the arguments imply on a master; the author's own `conf` wins."""
        return {}

    def _not_on_connect(self) -> dict[str, str]:
        """Options that a Spark Connect server has no use for -> why."""
        return dict.fromkeys(("spark_log_uri", "spark_log_level"), "Spark's log is that of its server")

    def _texts(self) -> list[Any]:
        """Arguments with containers of text: templates in them render to text in every DAG."""
        return [self.conf, self.env_vars]

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render as Airflow does, but text to text where the DAG renders to Python's types.

        Args:
            content: an argument, or a part of one.
            context: Airflow's.
            jinja_env: of the DAG.
            seen_oids: what has been rendered, and what a mapped task was given by another one: that is no
                template, whatever is in it.
        """

        def render(value: Any) -> Any:
            return super(HydrogenOperator, self).render_template(value, context, jinja_env, seen_oids)

        dag = self.get_dag()
        is_text = isinstance(content, (dict, list, tuple)) and any(content is text for text in self._texts())
        if id(content) in (seen_oids or ()):
            return content
        if dag is None or not is_text or not renders_natively(jinja_env or self.get_template_env()):
            return render(content)
        return render_as_text(content, context, dag.get_template_env(force_sandboxed=True), render)

    # --- running -----------------------------------------------------------------------------------------

    def execute(self, context: Context) -> Any:
        """Submit the job, wait for its end and answer with what its report says.

        Raises:
            AirflowFailException: running the same job again cannot help; there is no retry.
            AirflowException: any other failure.
        """
        return with_airflows_errors(lambda: self._run_job(context))

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on after a deferral: answer with what the driver's report says.

        Args:
            context: Airflow's.
            event: of SparkDriverTrigger.

        Raises:
            AirflowFailException: running the same job again cannot help; there is no retry.
            AirflowException: any other failure.
        """
        run = run_of(context)

        def answer() -> Any:
            self._spark_log = self._spark_log_of(event["report_uri"])
            return self._answer(context, run, self._resume_driver(context, run, event))

        return with_airflows_errors(answer)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage:
        """Tell Airflow's OpenLineage provider what was read and written.

        Args:
            task_instance: Airflow's; the provider asks in the process in which the task has ended, and the
                report is there.
        """
        # It needs the provider, which is there if somebody asks.
        from airflow_hydrogen.operators.lineage import Surroundings

        return self._lineage(
            self._report, Surroundings(self.conf or {}, HydrogenSparkSubmitHook.get_connection)
        )

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage:
        """The same of a task that failed; the provider itself adds the error."""
        return self.get_openlineage_facets_on_complete(task_instance)

    def _run_job(self, context: Context) -> Any:
        run = run_of(context)
        self._report = None
        # The state store outlives a clear, after which the provider's operator is to submit again.
        self.external_id_key = f"{ClusterModeOperator.external_id_key}.{run.clear_number}"
        self._K8S_DRIVER_STATUS_KEY = f"{ClusterModeOperator._K8S_DRIVER_STATUS_KEY}.{run.clear_number}"
        self._connection, self._packed, self._report_place = None, {}, None
        self._connectors = {}
        self._driver_options = {}
        if self.name is not None:
            self.name = to_text("name", self.name)
        hook = self._get_hook()
        self._connection = hook.resolved_connection
        if isinstance(hook, HydrogenConnectHook):
            return self._answer(context, run, self._run_on_connect(context, run, hook))
        if (report := self._run_on_local_server(context, run, hook)) is not None:
            return self._answer(context, run, report)
        self.conf = {
            **self._resource_conf(hook.master),
            **spark_logs.level_conf(self.spark_log_level),
            **(self.conf or {}),
        }
        self._s3 = self._s3_access()
        if self._s3 is not None:
            stores.require_no_other(self._s3, self.conf, _settings(hook))
        defers = require_mode(hook, self.deferrable, self.supervise)
        if hook.is_standalone_cluster:
            return self._answer(context, run, self._run_driver(context, run, hook, defers))
        with tempfile.TemporaryDirectory(prefix="airflow-hydrogen-") as folder:
            report_uri = str(Path(folder, "report.json"))
            if hook.is_cluster_mode:
                report_uri = self._shared_report_uri(run)
            job = self._prepare(context, run, hook, report_uri)
            self._pack(job, Path(folder), hook.is_cluster_mode)
            report = self._submit(context, report_uri)
        return self._answer(context, run, report)

    def _run_on_connect(self, context: Context, run: Run, hook: HydrogenConnectHook) -> Report:
        """Run the job as a client of a Spark Connect server, which logs and shows for itself."""
        require_mode(hook, self.deferrable, self.supervise)
        self._require_possible(hook)
        with tempfile.TemporaryDirectory(prefix="airflow-hydrogen-") as folder:
            report_uri = str(Path(folder, "report.json"))
            job = dataclasses.replace(self._build_job(run, report_uri, False), s3=self._s3_access())
            require_possible(job)
            self._code.check(hook, elsewhere=bool(self.py_files or self._archives))
            hook.require_launcher()
            self._check_data(context, job, hook)
            self._push_links(context)
            self.log.info("%s", describe_job(job, hook.master))
            runtime, *project = self._pack_code(Path(folder))
            job = dataclasses.replace(job, connect=hook.with_code([runtime, *project]))
            # The client has the runtime as it is installed here: out of a zip Python compiles it each time.
            self._write_application(job, Path(folder), project)
            return self._submit(context, report_uri)

    def _run_on_local_server(
        self, context: Context, run: Run, hook: HydrogenSparkSubmitHook
    ) -> Report | None:
        """Run the job on the server that tasks of this machine share; None where it takes an application."""
        if not local_sessions.are_wanted(hook.master):
            return None
        submitted = self._connection
        try:
            job = self._build_job(run, "", False)
            local_sessions.require_possible(job, self.env_vars, self._code.project_files().values())
            if not hook.uses_this_interpreter():
                raise NotOnConnectError("another Python for workers", "the server's is that of the task")
            self._require_possible(self._hook_of(local_sessions.NOWHERE))
            with local_sessions.joining(hook.master, self.log.info) as access:
                return self._run_on_connect(context, run, self._hook_of(access))
        except ApplicationError as error:
            if not local_sessions.takes_application(error):
                raise
            self.log.info("Submitting an application, which the job's code takes: %s", error)
        except (NotOnConnectError, LocalServerError) as reason:
            self.log.info("Submitting an application: %s", reason)
        finally:
            self._access, self._connection = None, submitted
        return None

    def _hook_of(self, access: ConnectAccess) -> HydrogenConnectHook:
        self._access, self._connection = access, dict(connection_of(access))
        hook = self._get_hook()
        assert isinstance(hook, HydrogenConnectHook)
        return hook

    def _require_possible(self, hook: HydrogenConnectHook) -> None:
        """Raise NotOnConnectError for an argument that a Spark Connect server has no use for."""
        hook.require_possible()
        for option, why_not in self._not_on_connect().items():
            if (found := getattr(self, option)) is not None:
                raise NotOnConnectError(f"{option}={found!r}", why_not)

    def _prepare(self, context: Context, run: Run, hook: HydrogenSparkSubmitHook, report_uri: str) -> Job:
        job = self._build_job(run, report_uri, hook.is_cluster_mode)
        if hook.is_cluster_mode:
            nonce = secrets.token_hex(16)
            self._report_place = (report_uri, nonce)
            job = dataclasses.replace(job, report_nonce=nonce)
        job = dataclasses.replace(job, s3=self._s3)
        job = self._with_connectors(job, hook)
        self._code.check(hook, elsewhere=bool(self.py_files or self._archives))
        hook.require_launcher()
        if self._s3 is not None:
            buckets.require_open(self._s3, job.buckets, same_host=not hook.is_cluster_mode)
            self.log.info("S3 by connection %r: %s", self._s3.conn_id, self._s3.endpoint_url or "Amazon's")
        self._check_data(context, job, hook)
        # A retry may find the application of the try before still running; on this machine it cannot.
        shared = report_uri
        if not hook.is_cluster_mode:
            shared = self._shared_report_uri(run, f"-{context['ti'].try_number}")
        self._push_links(context)
        self.log.info("%s", describe_job(job, hook.master))
        self._tell_spark_log(context, shared)
        return dataclasses.replace(job, spark_log_uri=self._spark_log)

    def _with_connectors(self, job: Job, hook: HydrogenSparkSubmitHook) -> Job:
        """Give the job access to its databases, and the submission what Spark needs for sources and sink."""
        connections = databases.connections_of(job.places, hook.get_connection)
        access = databases.access_of(connections)
        needed = connectors.needed(job.places, access)
        if connectors.has_spark_on_s3(job) and not hook.is_cluster_mode:  # a cluster's jars are not seen here
            needed += connectors.of_s3(hook.spark_home, _settings(hook))
        if not needed and not connections:
            return job
        # An option of spark-submit takes the place of the setting of that name.
        conf = self.conf or {}
        given = Submission(
            packages=split_list(self.packages or conf.get("spark.jars.packages") or ""),
            jars=[
                *split_list(self.jars or conf.get("spark.jars") or ""),
                *databases.driver_jars(connections),
            ],
            excludes=split_list(self.exclude_packages or conf.get("spark.jars.excludes") or ""),
            conf=conf,
        )
        added = connectors.additions(needed, given, hook.spark_home, hook.jars_folder if needed else None)
        if added.packages or added.jars:
            self.log.info("Adding for sources and sink: %s", ", ".join([*added.packages, *added.jars]))
        self.conf = {**conf, **added.conf}
        self._connectors = {
            "packages": ",".join([*given.packages, *added.packages]) or None,
            "jars": ",".join([*given.jars, *added.jars]) or None,
            "exclude_packages": ",".join(dict.fromkeys([*given.excludes, *added.excludes])) or None,
        }
        return dataclasses.replace(job, access=access)

    def _get_hook(self) -> HydrogenSparkSubmitHook:
        options = {option: getattr(self, attribute) for option, attribute in HOOK_OPTIONS.items()}
        kind = ClusterDriverHook if self._driver_options else self._kind_of_hook()
        known = {"access": self._access} if kind is HydrogenConnectHook else {}
        return kind(
            **known,
            on_spark_ui=self._on_spark_ui,
            on_submit=self._before_submit,
            connection=self._connection,
            **{**options, **self._connectors, **self._packed, **self._driver_options},
        )

    def _kind_of_hook(self) -> type[HydrogenSparkSubmitHook]:
        if self._connection is not None:
            is_to_server = self._connection["master"].startswith(SCHEME)
        else:
            try:
                is_to_server = is_connect(HydrogenSparkSubmitHook.get_connection(self._conn_id))
            except AirflowNotFoundException:
                is_to_server = False
        return HydrogenConnectHook if is_to_server else HydrogenSparkSubmitHook

    def _before_submit(self) -> None:
        if self._killed:
            raise AirflowException("The task was ended before the application was submitted")
        if self._report_place is not None:
            report_files.leave_nonce(*self._report_place, self._s3)

    def _shared_report_uri(self, run: Run, submission: str = "") -> str:
        """Where a driver on the cluster writes: beside the output.

        Without a submission's own name it is the same for every try of a run: a retry may find the
        application of the try before still running, and then waits for its report.
        """
        identity = hashlib.sha256(repr(dataclasses.astuple(run)).encode()).hexdigest()[:12]
        base, name = uris.canonical(self._shared_report_base()), f".report-{identity}{submission}.json"
        return uris.join(base, name) if uris.is_root(base) else base + name

    def _spark_log_of(self, report_uri: str) -> str:
        base = uris.canonical(self._shared_report_base())
        return spark_logs.location(report_uri, base, self.spark_log_uri, self.task_id)

    def _tell_spark_log(self, context: Context, report_uri: str) -> None:
        self._spark_log = self._spark_log_of(report_uri)
        self.log.info("Spark's whole log: %s", self._spark_log)
        context["ti"].xcom_push(key=SparkLogLink().xcom_key, value=browsable_file(self._spark_log))

    def _pack(self, job: Job, folder: Path, cluster_mode: bool) -> None:
        """Write everything that is submitted into a folder that only this user can read."""
        job_file = self._write_application(job, folder, self._pack_code(folder))
        if cluster_mode:
            self._packed["files"] = _join(self.files, [job_file, *self._code.scripts()])
            self._packed["application_args"] = [job_file.name]

    def _write_application(self, job: Job, folder: Path, archives: Sequence[Path]) -> Path:
        application = folder / "airflow_hydrogen_job.py"
        application.write_text(_APPLICATION)
        job_file = folder / "job.json"
        write_secretly(job_file, jobs.dumps(job))
        self.application = str(application)
        self._packed = {"py_files": _join(self.py_files, archives), "application_args": [str(job_file)]}
        return job_file

    def _pack_code(self, folder: Path) -> list[Path]:
        archives = [pack_runtime(folder / "airflow_hydrogen_runtime.zip")]
        if files := self._code.project_files():
            archives.append(pack_project(folder / "airflow_hydrogen_project.zip", files))
        return archives

    def _scripts(self) -> list[Path]:
        return self._code.scripts()

    @property
    def _code(self) -> JobCode:
        file = getattr(self.get_dag(), "fileloc", None)
        return JobCode(self._code_arguments(), [Path(file).parent] if file else [])

    def _push_links(self, context: Context) -> None:
        """Push the links that have to work while the task runs; Airflow pushes links when it has ended."""
        ti = context["ti"]
        self._on_spark_ui = lambda url: ti.xcom_push(key=SparkUILink().xcom_key, value=url)
        for link in self.operator_extra_links:
            if value := link.get_link(self, ti_key=ti):  # type: ignore[arg-type]
                ti.xcom_push(key=link.xcom_key, value=value)

    def _submit(self, context: Context, report_uri: str) -> Report:
        self._hook = None
        try:
            super().execute(context)
            submit_error = None
        except Exception as error:
            if self._hook is None or not self._hook.submitted:
                raise  # nothing ran: the provider's own complaint is the best
            submit_error = error
        if self._killed:
            raise AirflowException("The task was ended while the application ran") from submit_error
        report = report_files.read(report_uri, self._s3)
        if report is None:
            silence = self._explain_silence(submit_error)
            raise ApplicationError(
                silence, retryable=not SharedStorageError.is_told_in(silence)
            ) from submit_error
        report_files.remove_nonce(report_uri, self._s3)
        if report.failure is not None:
            raise report.failure.to_error()
        if submit_error is not None:
            self._explain_late_failure(submit_error)
        return report

    def _explain_late_failure(self, submit_error: Exception) -> None:
        hook = self._hook
        if isinstance(hook, HydrogenSparkSubmitHook) and hook.give_up_archive(str(submit_error)):
            self.log.info("Spark's classes could not be kept when the application had ended; it succeeded")
        else:
            self.log.warning("The application reported success, then spark-submit failed: %s", submit_error)

    def _explain_silence(self, submit_error: Exception | None) -> str:
        hook = self._hook
        how = (
            f"spark-submit failed ({_first_line(submit_error)})" if submit_error else "spark-submit succeeded"
        )
        tail = hook.log_tail if isinstance(hook, HydrogenSparkSubmitHook) else ""
        return f"the application ended without a report; {how}" + (
            f". Its last lines:\n{tail}" if tail else ""
        )

    def _answer(self, context: Context, run: Run, report: Report) -> Any:
        self._report = report
        self.log.info("%s", describe_report(report))
        result = self._result(report)
        if self.do_xcom_push:
            document = dataclasses.asdict(report)
            del document["failure"]
            context["ti"].xcom_push(key="report", value=finite(document))
        extra = finite({**self._asset_extra(report), "run": dataclasses.asdict(run)})
        emit_events(context, self.outlets, self._location(report), extra, self._partition_keys(report))
        if self.multiple_outputs and not isinstance(result, Mapping):
            # TaskFlow infers it from a `-> dict`. The work is done: a single value is no reason to lose it.
            self.log.warning("multiple_outputs is ignored: the result is %r, not a mapping", result)
            self.multiple_outputs = False
        return finite(result)


def with_airflows_errors(run: Callable[[], Any]) -> Any:
    """Call, and say by Airflow's exceptions whether a retry can help."""
    try:
        return run()
    except HydrogenError as error:
        kind = AirflowException if error.retryable else AirflowFailException
        raise kind(str(error)) from error.__cause__


def run_of(context: Context) -> Run:
    """The run as its tries share it.

    `dag_run.clear_number` counts clears of any task of the run, and none made with reset_dag_runs=False. What
    a clear of this very task changes, and nothing else, is its `max_tries`: the tries that were over plus
    `retries` as the DAG said it then. To take `retries` off again would need that number, and what the DAG
    says now may be another: the sum itself is the identity.
    """
    ti = context["ti"]
    return Run(
        dag_id=ti.dag_id,
        task_id=ti.task_id,
        run_id=ti.run_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        clear_number=ti.max_tries,
    )


def _settings(hook: HydrogenSparkSubmitHook) -> dict[str, str]:
    try:
        return hook.settings
    except (OSError, ValueError):  # a file that cannot be read: spark-submit will have its own to say
        return {}


def _join(existing: str | None, files: Sequence[Path]) -> str:
    return ",".join([*([existing] if existing else []), *map(str, files)])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
