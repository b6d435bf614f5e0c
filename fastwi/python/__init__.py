"""What the commands train and sweep do, from Python: the same path, with the same results."""
