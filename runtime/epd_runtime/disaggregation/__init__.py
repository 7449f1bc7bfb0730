"""What crosses between stages: embeddings from encoders to prefill, KV pages from prefill to decode."""
