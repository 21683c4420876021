"""From a request to a video: the stages in order, the denoising loop, the file."""
