"""The flights that left New York in 2013: the example that the DAGs, the demo and the tests share."""
