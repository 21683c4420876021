"""A whole fleet on one machine, to be looked at and measured; nothing here serves users."""
