"""From an HTTP body to token ids, image headers and positions, and from token ids back to text. Never imports torch."""
