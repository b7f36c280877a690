"""What `make bench` measures: one module a benchmark, each against a baseline of the same run."""
