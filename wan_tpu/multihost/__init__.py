"""Several processes that make one video: their ranks, whether they match, leader and followers.

Knows sockets; knows nothing of JAX, models or HTTP.
"""
