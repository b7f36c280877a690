"""What a Spark connection says about its cluster manager, asked for without blocking the event loop."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.managers import endpoint_of


async def endpoint_of_connection(conn_id: str) -> ClusterEndpoint:
    """Where the cluster manager of a connection answers.

    Raises:
        InvalidJobError: the connection does not say, or there should be one.
    """
    try:
        connection = await BaseHook.aget_connection(conn_id)
    except AirflowNotFoundException:
        connection = None
    return endpoint_of(conn_id, connection)
