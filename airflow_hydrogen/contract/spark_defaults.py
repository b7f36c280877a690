"""Spark's settings where a user has said nothing: of drivers, and of servers that tasks share."""

from __future__ import annotations

OF_ALL = {
    "spark.ui.showConsoleProgress": "false",  # the driver's output is a log, not a terminal
}
OF_GANGS = {
    # In place of Spark's own blind wait of ten minutes for slots.
    "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "2s",
    "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "5",
    "spark.dynamicAllocation.enabled": "false",
}
OF_ONE_MACHINE = {
    # A web server for an application of seconds, on a machine whose port nobody has opened.
    "spark.ui.enabled": "false",
    # Folders of one machine are listed faster by the driver than by a Spark job with a task for each.
    "spark.sql.sources.parallelPartitionDiscovery.threshold": "100000",
    # Delta's own default, 50 tasks to read a table's log, is made for clusters.
    "spark.databricks.delta.snapshotPartitions": "2",
}
