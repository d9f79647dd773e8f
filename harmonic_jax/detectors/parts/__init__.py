"""What the detectors share: anchors, matching, heads, the pyramid, selection, loss sums."""
