"""Links to the Spark UI of a running application, to its log, and to where a model or scores lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs
from airflow.sdk import BaseOperatorLink

from airflow_hydrogen.contract import uris

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


def browsable(uri: str) -> str:
    """The address under which a browser shows a URI: the store's console where one is known.

    Args:
        uri: a path, or a URI such as `s3://bucket/key` or `gs://bucket/key`.
    """
    location = uris.parse(uri)
    key = quote(location.path[1:], safe="/=")
    match location.store:
        case "file":
            return f"file:///{key}"
        case "s3":
            prefix = f"{key}/" if key else ""
            return f"https://s3.console.aws.amazon.com/s3/buckets/{location.authority}?prefix={prefix}"
        case "gs":
            return f"https://console.cloud.google.com/storage/browser/{location.authority}/{key}"
        case _:
            return uri


def browsable_file(uri: str) -> str:
    """The address under which a browser shows a single file.

    Args:
        uri: as for `browsable`.
    """
    location = uris.parse(uri)
    key = quote(location.path[1:], safe="/=")
    match location.store:
        case "s3":
            return f"https://s3.console.aws.amazon.com/s3/object/{location.authority}?prefix={key}"
        case "gs":
            return f"https://console.cloud.google.com/storage/browser/_details/{location.authority}/{key}"
        case _:
            return browsable(uri)


@attrs.define()
class SparkUILink(BaseOperatorLink):
    """The Spark UI while the application runs: the operator pushes it as soon as it is known."""

    @property
    def name(self) -> str:
        """The button's text."""
        return "Spark UI"

    @property
    def xcom_key(self) -> str:
        """Where the operator puts the address while the task runs."""
        return "_link_spark_ui"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Nothing: Airflow asks when the task has ended, and the UI has ended with it."""
        return ""


@attrs.define()
class SparkLogLink(BaseOperatorLink):
    """Spark's whole log, at INFO. The operator pushes it when it submits."""

    @property
    def name(self) -> str:
        """The button's text."""
        return "Spark log"

    @property
    def xcom_key(self) -> str:
        """Where the operator puts the address while the task runs."""
        return "_link_spark_log"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """The log of this try's driver; nothing as long as there is none."""
        location = operator.spark_log_location
        return browsable_file(location) if location else ""


@attrs.define()
class ModelLocationLink(BaseOperatorLink):
    """Where the training publishes its model."""

    @property
    def name(self) -> str:
        """The button's text."""
        return "Model"

    @property
    def xcom_key(self) -> str:
        """Where the operator puts the address while the task runs."""
        return "_link_model"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """The model's location."""
        return browsable(operator.output_location)


@attrs.define()
class OutputLocationLink(BaseOperatorLink):
    """Where the scores are."""

    @property
    def name(self) -> str:
        """The button's text."""
        return "Scores"

    @property
    def xcom_key(self) -> str:
        """Where the operator puts the address while the task runs."""
        return "_link_scores"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """The location of the partition that the run replaces; nothing for a table that has none."""
        location = operator.output_location
        return browsable(location) if location else ""
