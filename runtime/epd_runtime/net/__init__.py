"""Addresses and names: where to listen, and who is behind a host name right now."""
