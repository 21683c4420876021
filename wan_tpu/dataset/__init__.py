"""Clips and captions: listed, checked, encoded once, and read as batches in a repeatable order."""
