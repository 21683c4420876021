"""Wan's denoising transformer: diffusers' modules through torchax, scanned, with our attention."""
