"""Horovod for today's frameworks, built from its source with a small patch."""
