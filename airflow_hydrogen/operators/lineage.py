"""What a task has read and written, in OpenLineage's words.

Airflow's OpenLineage provider need not be there. It is what asks, so that this module is imported only then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import attr
from airflow.providers.openlineage.extractors import OperatorLineage
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    RunFacet,
    base_subset_dataset,
    dataset_type_dataset,
    dataset_version_dataset,
    input_statistics_input_dataset,
    output_statistics_output_dataset,
    schema_dataset,
    sql_job,
)
from openlineage.common.sql import parse

from airflow_hydrogen import __version__
from airflow_hydrogen.contract.aliases import is_alias
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.jobs import InferenceJob
from airflow_hydrogen.contract.publications import PublishReport
from airflow_hydrogen.contract.reports import InferenceReport, TrainReport
from airflow_hydrogen.contract.sinks import Sink
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.hooks import brokers, catalogs, databases
from airflow_hydrogen.operators import dataset_names
from airflow_hydrogen.operators.dataset_names import DatasetName

PRODUCER = f"urn:airflow-hydrogen:{__version__}"
TRAINING, SCORING = "airflow_hydrogen_training", "airflow_hydrogen_scoring"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """Where a job's sources are looked up.

    Attributes:
        conf: Spark's settings, of which those of catalogs matter.
        get_connection: Airflow's.
    """

    conf: Mapping[str, str]
    get_connection: Callable[[str], Any]


class _HydrogenFacet(RunFacet):  # type: ignore[misc]
    """A facet of this package's own."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._producer = PRODUCER


@attr.define
class TrainingRunFacet(_HydrogenFacet):
    """What a training did, for which OpenLineage has no facet: the fields of TrainReport."""

    np: int
    epochs: int
    metrics: dict[str, float]
    rows: int | None
    seconds: dict[str, float]
    rowsPerSecond: float | None
    resumedFromEpoch: int | None
    restarts: list[str]
    reused: bool

    @staticmethod
    def _get_schema() -> str:
        return f"{PRODUCER}:TrainingRunFacet"


@attr.define
class ScoringRunFacet(_HydrogenFacet):
    """What a scoring did, for which OpenLineage has no facet: the fields of InferenceReport."""

    rowsIn: int
    rowsOut: int
    rowsDropped: int
    rowsQuarantined: int
    badRows: dict[str, int]
    seconds: dict[str, float]
    rowsPerSecond: float | None

    @staticmethod
    def _get_schema() -> str:
        return f"{PRODUCER}:ScoringRunFacet"


def of_training(
    sources: Mapping[str, Source],
    model_uri: str,
    report: TrainReport | None,
    around: Surroundings,
    *,
    prepared: bool,
) -> OperatorLineage:
    """The lineage of a training.

    Args:
        sources: by the name of the dataset.
        model_uri: where the model is, or would be.
        report: None where the task failed.
        around: what names are looked up in.
        prepared: a function of the user's lies between the sources and the rows that the report counts.
    """
    reads: list[_Read] = []
    for name, source in sources.items():
        snapshot = report.sources.get(name, {}) if report else {}
        rows = report.rows if report and name == "train" and not prepared else None
        reads += _reads(source, snapshot, rows, around)
    outputs = []
    if report is None or report.model_uri is not None:
        facets = _model_facets(report.model_version if report else None)
        outputs.append(_output(dataset_names.of_place(model_uri), facets))
    return OperatorLineage(
        inputs=[read.dataset() for read in _joined(reads)],
        outputs=outputs,
        run_facets={} if report is None else {TRAINING: _training_facet(report)},
        job_facets=_job_facets(sources.values()),
    )


def of_publication(model: str, model_uri: str, report: PublishReport | None) -> OperatorLineage:
    """The lineage of a publication of a model that was trained elsewhere.

    Args:
        model: where it was taken from.
        model_uri: where it is, or would be.
        report: None where the task failed.
    """
    facets = _model_facets(report.model_version if report else None)
    return OperatorLineage(
        inputs=[_Read(dataset_names.of_place(model)).dataset()],
        outputs=[_output(dataset_names.of_place(model_uri), facets)],
    )


def of_scoring(job: InferenceJob, report: InferenceReport | None, around: Surroundings) -> OperatorLineage:
    """The lineage of a scoring.

    Args:
        job: what was to be scored.
        report: None where the task failed.
        around: what names are looked up in.
    """
    rows = report.rows_in if report and not job.prepare else None
    reads = list(_reads(job.source, report.source if report else {}, rows, around))
    own = dict.fromkeys(job.sink.partition_columns)
    columns = {**report.columns, **own} if report and report.columns else {}
    outputs = [
        _output(name, _schema(columns), report.rows if report else None, job.sink.partitions)
        for name in _of_sink(job.sink, around)
    ]
    if job.on_bad_row == "quarantine":
        bad = report.rows_quarantined if report else None
        kept = job.quarantine_sink
        outputs += [_output(name, {}, bad, kept.partitions) for name in _of_sink(kept, around)]
    return OperatorLineage(
        inputs=[
            *(read.dataset() for read in _joined(reads)),
            *_models_of(job, report),
        ],
        outputs=outputs,
        run_facets={} if report is None else {SCORING: _scoring_facet(report)},
        job_facets=_job_facets([job.source]),
    )


# --- what is read ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """One dataset that is read, and what is known of that."""

    name: DatasetName
    columns: Sequence[str] | None = None
    version: str | None = None
    rows: int | None = None
    files: int | None = None
    size: int | None = None
    partitions: tuple[Mapping[str, str], ...] = ()

    def dataset(self) -> InputDataset:
        """As OpenLineage says it."""
        facets = _schema(dict.fromkeys(self.columns or ()))
        if self.version is not None:
            facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(self.version)
        input_facets: dict[str, Any] = {}
        if (self.rows, self.files, self.size) != (None, None, None):
            input_facets["inputStatistics"] = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
                rowCount=self.rows, size=self.size, fileCount=self.files
            )
        if self.partitions:
            input_facets["subset"] = base_subset_dataset.InputSubsetInputDatasetFacet(
                _condition(self.partitions)
            )
        return InputDataset(self.name.namespace, self.name.name, facets=facets, inputFacets=input_facets)


def _reads(
    source: Source, snapshot: Mapping[str, Any], rows: int | None, around: Surroundings
) -> Iterator[_Read]:
    """The datasets of a source; a query has several, and `rows` are then nobody's in particular."""
    if source.kind == "sql":
        known = snapshot.get("tables", {})
        for name, table in source.tables.items():
            yield from _reads(table, known.get(name, {}), None, around)
        ours = {name.lower() for name in source.tables}
        for parts in _tables_in(source.query or "", "spark"):
            if len(parts) > 1 or parts[0].lower() not in ours:
                yield _Read(dataset_names.of_table(parts, around.conf))
        return
    version = snapshot.get("version", snapshot.get("digest"))
    if source.kind == "jdbc":  # counted before `prepare` sees them; a query's tables have more
        rows = None if source.query else snapshot.get("rows", rows)
    for dataset in _names(source, around):
        yield _Read(
            name=replace(dataset, partition={}),
            columns=None if source.query else source.columns,
            version=None if version is None else str(version),
            rows=rows,
            files=snapshot.get("files"),
            size=snapshot.get("bytes"),
            partitions=(dataset.partition,) if dataset.partition else (),
        )


def _names(source: Source, around: Surroundings) -> list[DatasetName]:
    if source.topic is not None:
        return _topic(source, around)
    if source.kind == "jdbc":
        url = _url(source, around)
        if url is None:
            return []
        if source.table_name is not None:
            return [dataset_names.of_jdbc(url, source.table_name)]
        tables = _tables_in(source.query or "", dataset_names.dialect_of(url))
        return [dataset_names.of_jdbc(url, parts) for parts in tables]
    if source.kind == "iceberg":
        return _iceberg(source, around)
    if source.table_name is not None:
        return [dataset_names.of_table(source.table_name, around.conf)]
    if source.uri is not None:
        return [dataset_names.of_rows(source.uri)]
    log.info("%s has no place in the lineage: only its connector knows where it reads", source)
    return []


def _tables_in(query: str, dialect: str) -> list[list[str]]:
    """The tables that a query reads, each as the parts of its name."""
    found = parse([query], dialect=dialect)
    if found is None or (found.errors and not found.in_tables):
        log.info("the tables of this query are not in the lineage, it cannot be parsed: %s", query)
        return []
    return [
        [part for part in (table.database, table.schema, table.name) if part] for table in found.in_tables
    ]


def _joined(reads: Sequence[_Read]) -> list[_Read]:
    """Each dataset once: training and validation may be parts of one table."""
    joined: dict[tuple[str, str], _Read] = {}
    for read in reads:
        key = read.name.namespace, read.name.name
        joined[key] = read if key not in joined else _both(joined[key], read)
    return list(joined.values())


def _both(one: _Read, other: _Read) -> _Read:
    columns = None
    if one.columns is not None and other.columns is not None:
        columns = list(dict.fromkeys([*one.columns, *other.columns]))
    return _Read(
        name=one.name,
        columns=columns,
        # Of parts of a folder, each has a version, and the whole has none.
        version=one.version if one.version == other.version else None,
        rows=_sum(one.rows, other.rows),
        files=_sum(one.files, other.files),
        size=_sum(one.size, other.size),
        partitions=(*one.partitions, *other.partitions) if one.partitions and other.partitions else (),
    )


def _models_of(job: InferenceJob, report: InferenceReport | None) -> Iterator[InputDataset]:
    """The model that scored; none where the task failed before it said which one its alias names."""
    uri = report.model_uri if report and report.model_uri else job.model_uri
    if not is_alias(uri):
        model = dataset_names.of_place(uri)
        facets = _model_facets(report.model_version if report else None)
        yield InputDataset(model.namespace, model.name, facets=facets)


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


# --- facets ------------------------------------------------------------------------------------------------


def _of_sink(sink: Sink, around: Surroundings) -> list[DatasetName]:
    """The dataset that is written, where its name can be told."""
    if sink.topic is not None:
        return _topic(sink, around)
    if sink.kind == "iceberg":
        names = _iceberg(sink, around)
    elif sink.conn_id is not None:
        url = _url(sink, around)
        names = [] if url is None else [dataset_names.of_jdbc(url, str(sink.table_name))]
    elif sink.table_name is not None:
        names = [dataset_names.of_table(sink.table_name, around.conf)]
    else:
        names = [dataset_names.of_rows(str(sink.uri))]
    return [replace(name, partition={**name.partition, **sink.partition}) for name in names]


def _topic(place: Source | Sink, around: Surroundings) -> list[DatasetName]:
    """The topic of a stream, where its servers can be told."""
    servers = place.servers
    if servers is None:
        try:
            [connection] = databases.connections_of([place], around.get_connection).values()
            servers = brokers.reader_options(connection)["kafka.bootstrap.servers"]
        except InvalidJobError as error:
            log.warning("%s has no place in the lineage: %s", place, error)
            return []
    return [dataset_names.of_topic(servers, str(place.topic))]


def _iceberg(place: Source | Sink, around: Surroundings) -> list[DatasetName]:
    """The table of a catalog, where it can be told which."""
    properties = dict(place.catalog)
    if place.conn_id is not None:
        try:
            [connection] = databases.connections_of([place], around.get_connection).values()
            properties = catalogs.properties(connection)
        except InvalidJobError as error:
            log.warning("%s has no place in the lineage: %s", place, error)
            return []
    named = properties.get("name") or place.conn_id or "default"
    return [dataset_names.of_iceberg(str(place.table_name), named, properties)]


def _url(place: Source | Sink, around: Surroundings) -> str | None:
    """Of the database that a connection names."""
    try:
        [connection] = databases.connections_of([place], around.get_connection).values()
        return databases.reader_options(connection)["url"]
    except InvalidJobError as error:
        log.warning("%s has no place in the lineage: %s", place, error)
        return None


def _output(
    name: DatasetName,
    facets: dict[str, Any],
    rows: int | None = None,
    partitions: Sequence[Mapping[str, str]] = (),
) -> OutputDataset:
    """A dataset that is written, or the partition that its name says, or those that are said beside it."""
    output_facets: dict[str, Any] = {}
    if rows is not None:
        statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows)
        output_facets["outputStatistics"] = statistics
    written = [{**name.partition, **partition} for partition in partitions or [{}]]
    if any(written):
        output_facets["subset"] = base_subset_dataset.OutputSubsetOutputDatasetFacet(_condition(written))
    return OutputDataset(name.namespace, name.name, facets=facets, outputFacets=output_facets)


def _condition(partitions: Sequence[Mapping[str, str]]) -> Any:
    parts = [base_subset_dataset.Partition(dimensions=dict(partition)) for partition in partitions]
    return base_subset_dataset.PartitionSubsetCondition(partitions=parts)


def _model_facets(version: str | None) -> dict[str, Any]:
    facets: dict[str, Any] = {"datasetType": dataset_type_dataset.DatasetTypeDatasetFacet("MODEL")}
    if version is not None:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(version)
    return facets


def _schema(columns: Mapping[str, str | None]) -> dict[str, Any]:
    if not columns:
        return {}
    fields = [
        schema_dataset.SchemaDatasetFacetFields(name=name, type=type_) for name, type_ in columns.items()
    ]
    return {"schema": schema_dataset.SchemaDatasetFacet(fields=fields)}


def _job_facets(sources: Any) -> dict[str, Any]:
    """The queries of sources; values that are bound to their names are not among them."""
    queries = [part.query for source in sources for part in source.walk() if part.query]
    return {"sql": sql_job.SQLJobFacet(";\n".join(dict.fromkeys(queries)))} if queries else {}


def _training_facet(report: TrainReport) -> TrainingRunFacet:
    return TrainingRunFacet(
        np=report.np,
        epochs=report.epochs,
        metrics=dict(report.metrics),
        rows=report.rows,
        seconds=dict(report.seconds),
        rowsPerSecond=report.rows_per_second,
        resumedFromEpoch=report.resumed_from_epoch,
        restarts=list(report.restarts),
        reused=report.reused,
    )


def _scoring_facet(report: InferenceReport) -> ScoringRunFacet:
    return ScoringRunFacet(
        rowsIn=report.rows_in,
        rowsOut=report.rows,
        rowsDropped=report.rows_dropped,
        rowsQuarantined=report.rows_quarantined,
        badRows=dict(report.bad_rows),
        seconds=dict(report.seconds),
        rowsPerSecond=report.rows_per_second,
    )
