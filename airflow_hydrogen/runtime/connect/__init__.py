"""Jobs on a Spark Connect server: joining its sessions, and what its client does not tell by itself."""
