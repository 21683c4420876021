"""Wan's video autoencoder in Flax: streaming decode, encode, weight names, the other back end."""
