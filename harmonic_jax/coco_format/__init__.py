"""COCO's JSON files as people and tools write them: one parser, for training and for metrics."""
