"""`rbg plan`: what the operator would do with a manifest, on an empty cluster or against a real one."""
