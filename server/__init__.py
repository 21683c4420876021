"""The service: `python -m server` takes jobs over HTTP and makes videos, one at a time.

This process never imports JAX or torch: the pipeline runs in a child (`server.engine.process`).
"""
