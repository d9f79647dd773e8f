"""Evaluation: numpy in, dict out."""
