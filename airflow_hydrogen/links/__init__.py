"""Links that tasks show in Airflow's UI."""
