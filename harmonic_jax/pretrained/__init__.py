"""Names and layouts of foreign checkpoints."""
