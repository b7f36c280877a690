"""The model directory: what is in it, how it is published, and what loads it."""
