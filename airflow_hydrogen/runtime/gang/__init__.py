"""A gang: the driver's side and the tasks' side of a barrier stage."""
