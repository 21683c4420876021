"""The HTTP side: routes, what is checked in front of them, and what goes over the wire.

Knows the service and its jobs; nothing else of the server knows HTTP.
"""
