"""Anchors, matching and targets: ground truth meets the network here, outside of it."""
