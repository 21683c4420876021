"""What makes the videos: the seam, the process that owns the accelerator, and all hosts in step.

Knows nothing of jobs beyond an id and a request.
"""
