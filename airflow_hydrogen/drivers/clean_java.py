"""Run spark-submit's Java without the environment of an Airflow worker.

In cluster mode a standalone cluster gives the driver the whole environment of the process that submitted it,
over the worker's own: the worker's SPARK_HOME, PATH and PYSPARK_PYTHON would be those of this machine, and
Airflow's own secrets (AIRFLOW_CONN_..., AIRFLOW__DATABASE__...) would be sent to the cluster and kept by its
master.

spark-submit's shell scripts need an environment, so that its Java is what gets another one: they run
`$JAVA_HOME/bin/java`, which runs this file.
"""

from __future__ import annotations

import json
import os
import sys

JAVA = "AIRFLOW_HYDROGEN_JAVA"
DRIVER_ENVIRONMENT = "AIRFLOW_HYDROGEN_DRIVER_ENVIRONMENT"
SUBMIT_CLASS = "org.apache.spark.deploy.SparkSubmit"
LAUNCHER_CLASS = "org.apache.spark.launcher.Main"


def clean(environ: dict[str, str], arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of the real Java.

    The default properties are named, because Spark finds them by variables that are not there any more.
    """
    if LAUNCHER_CLASS in arguments or SUBMIT_CLASS not in arguments:
        return arguments, environ  # it puts the command together, from the environment among others
    kept = {name: value for name, value in environ.items() if name.startswith("_SPARK_")}
    home = environ.get("SPARK_HOME", "")
    folder = environ.get("SPARK_CONF_DIR") or os.path.join(home, "conf")
    defaults = os.path.join(folder, "spark-defaults.conf")
    if "--properties-file" not in arguments and os.path.isfile(defaults):
        place = arguments.index(SUBMIT_CLASS) + 1
        arguments = [*arguments[:place], "--properties-file", defaults, *arguments[place:]]
    return arguments, {**kept, **json.loads(environ[DRIVER_ENVIRONMENT])}


if __name__ == "__main__":
    java = os.environ[JAVA]
    new_arguments, new_environment = clean(dict(os.environ), sys.argv[1:])
    os.execve(java, [java, *new_arguments], new_environment)
