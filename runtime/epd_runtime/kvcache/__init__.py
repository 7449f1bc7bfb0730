"""The KV cache: pages of tokens, who owns them, and the memory that they are."""
