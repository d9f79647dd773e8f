"""What a train step will need on a TPU pod, known from its compilation alone."""
