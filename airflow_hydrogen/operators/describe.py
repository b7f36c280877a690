"""One line for the log of what will be run, and one of what was done."""

from __future__ import annotations

from airflow_hydrogen.contract.jobs import Job, TrainJob
from airflow_hydrogen.contract.reports import InferenceReport, Report


def describe_job(job: Job, master: str) -> str:
    """One line that says what will be run."""
    if isinstance(job, TrainJob):
        datasets = ", ".join(f"{name}={source}" for name, source in job.datasets.items()) or "none"
        return (
            f"Training on {master}: entry point {job.entrypoint.name}, np={job.np}, datasets {datasets}, "
            f"model {job.model_uri}"
        )
    return f"Scoring on {master}: model {job.model_uri}, source {job.source}, output {job.sink}"


def describe_report(report: Report) -> str:
    """One line that says what was done."""
    seconds = report.seconds.get("total")
    speed = f", {report.rows_per_second:,.0f} rows/s" if report.rows_per_second else ""
    took = (f" in {seconds:.1f} s" if seconds is not None else "") + speed
    rows = "" if report.rows is None else f" {report.rows:,} rows"
    if isinstance(report, InferenceReport):
        return (
            f"Scored{rows}{_bad_rows(report)}{_partitions(report)}{_batches(report)}{took}"
            f"{_made_of(report)}: {report.output_uri}"
        )
    if report.reused:
        return f"The model is there already, from an earlier try: {report.model_uri}"
    metrics = ", ".join(f"{name}={value:.6g}" for name, value in sorted(report.metrics.items()))
    resumed = "" if report.resumed_from_epoch is None else f", resumed from epoch {report.resumed_from_epoch}"
    what = f"np={report.np}, {report.epochs} epochs{resumed}" + (f", {metrics}" if metrics else "")
    return f"Trained on{rows or ' no dataset'}{took} ({what}): {report.model_uri or report.result}"


def _made_of(report: InferenceReport) -> str:
    """From which rows, by which model."""
    if not report.source or report.model_version is None:
        return ""
    version = report.source.get("version")
    at = "" if version is None or " at version " in report.source["source"] else f" at version {version}"
    return f", from {report.source['source']}{at} by model {report.model_version[:12]}"


def _partitions(report: InferenceReport) -> str:
    """Of many, how many, and which of them have no rows."""
    if not report.partitions:
        return ""
    empty = sum(rows == 0 for rows in report.partitions.values())
    return f" in {len(report.partitions):,} partitions" + (
        f", {empty:,} of them without rows," if empty else ""
    )


def _batches(report: InferenceReport) -> str:
    """Of a stream, in how many parts, and why it has ended."""
    if not report.stream:
        return ""
    return f" in {report.stream['batches']:,} batches, ended by {report.stream['stopped']!r},"


def _bad_rows(report: InferenceReport) -> str:
    if report.rows_quarantined:
        return f" of {report.rows_in:,}, {report.rows_quarantined:,} quarantined in {report.quarantine_uri},"
    return f" of {report.rows_in:,}, {report.rows_dropped:,} dropped," if report.rows_dropped else ""
