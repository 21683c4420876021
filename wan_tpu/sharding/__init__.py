"""Layouts: what they are, how they lie on devices, which axis splits which array."""
