"""Pictures and clips: from a file's bytes to pixels of the wanted size, and CLIP's view of them.

`picture`, `video` and `fit` know nothing of JAX; a server asks them about what it is sent.
"""
