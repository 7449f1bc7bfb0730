"""What a RoleBasedGroup is: read a manifest, default it, validate it. Pure: bytes and mappings in, dataclasses out.

The dataclasses are frozen; pod templates stay the plain mappings they were, because Kubernetes owns their schema.
"""
