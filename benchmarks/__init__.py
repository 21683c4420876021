"""Measurements and plans: `python -m benchmarks layouts`; dated pages are in `results/`."""
