"""What a cluster manager knows: one file each, behind one protocol."""
