"""The engine process: scheduler, batches, model runner and sampler."""
