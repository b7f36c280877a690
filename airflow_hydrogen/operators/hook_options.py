"""How SparkSubmitOperator keeps the options of its hook.

The provider's operator names its hook's class in the middle of a method, so that a hook of our own needs the
list again. A test compares it with the installed provider.
"""

from __future__ import annotations

# Option of SparkSubmitHook -> attribute of SparkSubmitOperator.
HOOK_OPTIONS = {
    "conf": "conf",
    "conn_id": "_conn_id",
    "files": "files",
    "py_files": "py_files",
    "archives": "_archives",
    "driver_class_path": "driver_class_path",
    "jars": "jars",
    "java_class": "_java_class",
    "packages": "packages",
    "exclude_packages": "exclude_packages",
    "repositories": "_repositories",
    "total_executor_cores": "_total_executor_cores",
    "executor_cores": "_executor_cores",
    "executor_memory": "_executor_memory",
    "driver_memory": "_driver_memory",
    "keytab": "keytab",
    "principal": "principal",
    "proxy_user": "proxy_user",
    "name": "name",
    "num_executors": "_num_executors",
    "status_poll_interval": "_status_poll_interval",
    "application_args": "application_args",
    "env_vars": "env_vars",
    "verbose": "_verbose",
    "spark_binary": "_spark_binary",
    "properties_file": "properties_file",
    "yarn_queue": "_yarn_queue",
    "deploy_mode": "_deploy_mode",
    "use_krb5ccache": "_use_krb5ccache",
    "post_submit_commands": "post_submit_commands",
    "track_driver_via_k8s_api": "_track_driver_via_k8s_api",
    "yarn_track_via_rm_api": "_yarn_track_via_rm_api",
    "yarn_rm_auth": "_yarn_rm_auth",
}
