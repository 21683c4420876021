"""Adapters: small files that change a transformer, of any tool: read, merged and written."""
