from __future__ import annotations

from airflow_hydrogen.runtime.spark_errors import without_java_stack

SAID = """An error occurred while calling o42.collectToPython.
: org.apache.spark.SparkException: Job aborted: Task 0 failed: java.lang.ArithmeticException: / by zero
\tat org.apache.spark.rdd.RDD.iterator(RDD.scala:338)
\tat org.apache.spark.sql.GeneratedClass$GeneratedIteratorForCodegenStage1.processNext(Unknown Source)
\tat java.base/java.util.concurrent.ThreadPoolExecutor.runWorker(ThreadPoolExecutor.java:1136)

Driver stacktrace:
\tat org.apache.spark.scheduler.DAGScheduler.$anonfun$abortStage$2(DAGScheduler.scala:3122)
Caused by: java.lang.ArithmeticException: / by zero
\tat org.apache.spark.rdd.MapPartitionsRDD.<init>(MapPartitionsRDD.scala:57)
\t... 12 more
"""
PYTHON = """ValueError: 3 rows
Traceback (most recent call last):
  File "/home/user/dags/prepare.py", line 3, in look
    at (rows)
"""


def test_of_javas_errors_what_they_say_is_left():
    assert without_java_stack(SAID) == (
        "org.apache.spark.SparkException: Job aborted: Task 0 failed: java.lang.ArithmeticException: / by "
        "zero\n\nCaused by: java.lang.ArithmeticException: / by zero"
    )


def test_of_pythons_errors_nothing_is_left_out():
    assert without_java_stack(PYTHON) == PYTHON.strip()
    assert without_java_stack("it is as it was") == "it is as it was"
