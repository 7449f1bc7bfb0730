"""The vision side of an engine: decoding and patching images, ViT batches, the embedding cache, delivery."""
