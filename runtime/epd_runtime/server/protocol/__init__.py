"""Bodies of the HTTP requests: their fields and types, decoded in one pass; unknown fields are ignored.

Routers re-serialise bodies through structs of their own, so every field may be null, and none beyond the public APIs is
required. Fields of the public APIs that this server does not have are refused when they would change the answer.
/openapi.json is made from these structs.
"""
