"""Rows -> files and tables: staged out of sight, counted, then put in place at once."""
