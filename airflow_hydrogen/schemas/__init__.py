"""What columns a source has, asked without Spark, before a job is launched."""
