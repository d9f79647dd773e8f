"""Geometry and static-shape array algorithms."""
