"""Adapters of Wan's transformers: every style of file read, merged into weights, and written."""
