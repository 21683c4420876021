"""The way to the fleet's Temporal, for whoever has work for it or does some."""
