"""Preparing clips by any number of machines: shards as activities of a Temporal workflow."""
