"""Several processes that make one video: who they are, whether they match, and one that leads.

Knows sockets; knows nothing of JAX, models or HTTP.
"""
