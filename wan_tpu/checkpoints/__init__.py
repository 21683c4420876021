"""From a model's name to arrays on the mesh: files, configurations, weights."""
