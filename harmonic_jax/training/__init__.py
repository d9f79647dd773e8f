"""State, optimizer, step, loop, checkpoints and logs."""
