"""What crosses between Airflow and Spark: jobs, reports and errors. Standard library only."""

CONTRACT_VERSION = 3
"""Version of the job and report files. Both sides refuse a file of another version."""
