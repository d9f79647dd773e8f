"""COCO's JSON files: one parser, for training and for metrics."""
