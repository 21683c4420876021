"""The files of videos: how they are written, and where they lie."""
