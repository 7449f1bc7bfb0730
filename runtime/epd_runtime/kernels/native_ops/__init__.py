"""The operations of `ops` in C, for CPU: ops.c, the library made of it, and calls into that."""
