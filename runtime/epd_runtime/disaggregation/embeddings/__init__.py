"""Images to encoder servers, and their embeddings to the engine that needs them."""
