"""The jobs: their states, the database that keeps them, whose turn it is, and the worker.

Knows the engine's client and the files; knows nothing of HTTP.
"""
