"""The Spark Connect server that a task leaves behind on this machine, and that later tasks join."""
