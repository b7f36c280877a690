#!/usr/bin/env python3
"""Fetches a Hadoop module with what it depends on: `fetch_jars.py org.apache.hadoop:hadoop-aws FOLDER`.

Its version has to be that of the Hadoop inside pip's pyspark. Spark's own resolver fetches it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession


def main(module: str, folder: Path) -> None:
    """Copy the module's jars to a folder, without those that pyspark has."""
    there = Path(pyspark.__file__).with_name("jars")
    (client,) = there.glob("hadoop-client-api-*.jar")
    version = client.stem.removeprefix("hadoop-client-api-")
    with tempfile.TemporaryDirectory() as cache:
        SparkSession.builder.master("local").config("spark.jars.packages", f"{module}:{version}").config(
            "spark.jars.ivy", cache
        ).getOrCreate().stop()
        folder.mkdir(parents=True, exist_ok=True)
        for jar in Path(cache, "jars").glob("*.jar"):
            # Spark names them GROUP_ARTIFACT-VERSION.jar.
            name = jar.name.partition("_")[2]
            if not (there / name).exists():
                shutil.copy(jar, folder / name)
                print(name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
