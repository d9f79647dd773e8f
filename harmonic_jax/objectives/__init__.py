"""Predictions and ground truth in, one scalar and its named terms out."""
