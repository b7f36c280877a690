"""Drivers on standalone clusters: bundle, server, submission and wait."""
