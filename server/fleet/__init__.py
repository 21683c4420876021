"""Many slices behind one API: jobs in Temporal, files in a bucket.

A server of one slice imports none of this.
"""
