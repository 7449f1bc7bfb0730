"""Attention over the paged KV cache and over packed sequences: one interface, one file per implementation."""
