"""Rows on their way to a gang or a scorer: sources, files and row groups, shards, columns."""
