"""Distributed deep learning on Apache Spark, driven by Apache Airflow.

Both sides execute this file: Airflow while it reads its configuration, and the Spark application on
clusters that have no Airflow. It therefore holds the version and nothing else.
"""

__version__ = "0.1.0"
