"""Commands that the provider adds to `airflow`."""
