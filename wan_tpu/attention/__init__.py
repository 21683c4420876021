"""Attention: what it means, its implementations, and how it is split over a mesh."""
