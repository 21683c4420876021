"""What a fleet costs and how it grows, on real servers of this machine; slices that only sleep."""
