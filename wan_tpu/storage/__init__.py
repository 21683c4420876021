"""Buckets: stores of objects, and folders that stand for one."""
