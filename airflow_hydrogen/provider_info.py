"""What Airflow learns of this package from its entry point.

Airflow calls it while it reads its configuration: it must not import Airflow.
"""

from __future__ import annotations

from typing import Any

from airflow_hydrogen import __version__

_INTEGRATION = "Hydrogen"


def get_provider_info() -> dict[str, Any]:
    """The provider's description, valid under `airflow/provider_info.schema.json`."""
    return {
        "package-name": "airflow-hydrogen",
        "name": "Hydrogen",
        "description": (
            "Distributed deep learning on Apache Spark: trains with Horovod in Spark's barrier mode and "
            "scores with Arrow. It uses the ``spark`` connections of the Apache Spark provider, and this "
            "machine when there is none."
        ),
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "tags": ["software"],
            }
        ],
        "operators": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    "airflow_hydrogen.operators.train",
                    "airflow_hydrogen.operators.inference",
                    "airflow_hydrogen.operators.publish",
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": ["airflow_hydrogen.sensors.gpu_cluster"],
            }
        ],
        "triggers": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    "airflow_hydrogen.triggers.gpu_cluster",
                    "airflow_hydrogen.triggers.spark_driver",
                ],
            }
        ],
        "hooks": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    "airflow_hydrogen.drivers.hook",
                    "airflow_hydrogen.hooks.spark_submit",
                ],
            }
        ],
        "cli": ["airflow_hydrogen.cli.definition.get_cli_commands"],
        "extra-links": [
            "airflow_hydrogen.links.locations.SparkUILink",
            "airflow_hydrogen.links.locations.SparkLogLink",
            "airflow_hydrogen.links.locations.ModelLocationLink",
            "airflow_hydrogen.links.locations.OutputLocationLink",
        ],
        "config": {
            "airflow_hydrogen": {
                "description": "Training and scoring on Spark.",
                "options": {
                    "local_sessions": {
                        "description": (
                            "Whether tasks without a cluster leave a Spark Connect server behind on this "
                            "machine, which later tasks join. auto: where the executor runs all tasks on "
                            "the machine of Airflow itself (LocalExecutor)."
                        ),
                        "version_added": __version__,
                        "type": "string",
                        "example": "false",
                        "default": "auto",
                    },
                    "jars_folder": {
                        "description": (
                            "A folder with the jars of Spark's connectors (Delta, Avro, drivers of "
                            "databases), for machines without network access. Empty: they come as packages."
                        ),
                        "version_added": __version__,
                        "type": "string",
                        "example": "/opt/spark-connectors",
                        "default": "",
                    },
                    "session_idle_s": {
                        "description": (
                            "How long the Spark Connect server that a task has left behind on this machine "
                            "lives while no task uses it, in seconds."
                        ),
                        "version_added": __version__,
                        "type": "float",
                        "example": "3600",
                        "default": "600",
                    },
                },
            }
        },
        "task-decorators": [
            {"name": "horovod", "class-name": "airflow_hydrogen.decorators.horovod.horovod_task"}
        ],
    }
