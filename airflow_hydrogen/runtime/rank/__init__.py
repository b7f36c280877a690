"""What lives in a rank's own process."""
