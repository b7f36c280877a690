"""The versions that reports and manifests carry."""

from __future__ import annotations

import platform
from importlib import metadata

from airflow_hydrogen import __version__

_PACKAGES = (
    "pyspark",
    "pyarrow",
    "numpy",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "torch",
    "horovod",
    "onnxruntime",
    "tf2onnx",
)


def installed() -> dict[str, str]:
    """Package -> version, of what is installed where this runs."""
    versions = {"python": platform.python_version(), "airflow-hydrogen": __version__}
    for package in _PACKAGES:
        try:
            versions[package.removesuffix("-cpu")] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
