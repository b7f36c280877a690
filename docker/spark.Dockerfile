# syntax=docker/dockerfile:1
# Spark's master and workers: pip's pyspark, TensorFlow and Horovod on Python and Java. No Airflow: what runs on
# Spark must not need it. docker/airflow.Dockerfile builds on this image.
#
#     docker build --file docker/spark.Dockerfile --tag airflow-hydrogen-spark .

# Bookworm is the last Debian that has Java 17.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS libraries
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install -y --no-install-recommends openjdk-17-jre-headless \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    SPARK_HOME=/usr/local/lib/python3.11/site-packages/pyspark
# Another package index, as for pip; nothing of it stays in the image.
ARG PIP_INDEX_URL
WORKDIR /build
# `tensorflow`, or `tensorflow-gpu` for NVIDIA: an extra of this package.
ARG FRAMEWORK=tensorflow
COPY requirements/dev.txt constraints.txt
# Of the package only what its metadata are made from, so that a change of its code does not install TensorFlow anew.
COPY pyproject.toml README.md LICENSE ./
COPY airflow_hydrogen/__init__.py airflow_hydrogen/
# The pins know tensorflow by the name of its CPU build alone.
RUN sed -i 's/^tensorflow-cpu\(==[^ ]*\).*/&\ntensorflow\1/' constraints.txt \
    && pip install --constraint constraints.txt ".[spark,${FRAMEWORK}]"

FROM libraries AS horovod
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make patch \
    && rm -rf /var/lib/apt/lists/*
# Horovod is built without isolation, and needs these to be there.
RUN pip install --constraint constraints.txt "cmake<4" packaging pyyaml setuptools wheel
COPY airflow_hydrogen/horovod_build/ airflow_hydrogen/horovod_build/
RUN AIRFLOW_HYDROGEN_CACHE=/horovod python -m airflow_hydrogen.horovod_build

# What Spark needs for s3a://, resolved by Spark itself; the version is that of Spark's own Hadoop.
FROM libraries AS s3a
COPY docker/fetch_jars.py docker/
RUN python docker/fetch_jars.py org.apache.hadoop:hadoop-aws /jars

FROM libraries AS spark
RUN --mount=type=bind,from=horovod,source=/horovod/wheels,target=/wheels \
    pip install --constraint constraints.txt /wheels/*.whl
COPY --from=s3a /jars/ ${SPARK_HOME}/jars/
COPY airflow_hydrogen/ airflow_hydrogen/
RUN pip install --no-deps --force-reinstall .
COPY docker/spark-defaults.conf ${SPARK_HOME}/conf/
COPY --chmod=755 docker/gpus.sh docker/health.py docker/make_bucket.py /opt/hydrogen/
# New volumes take the owner of the folder that they hide.
RUN useradd --uid 1000 --create-home hydrogen && install --directory --owner hydrogen /data
USER 1000
WORKDIR /home/hydrogen
