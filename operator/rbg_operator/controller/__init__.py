"""Applies plans to a cluster: kopf events and informers fill a queue, workers observe, plan, apply, write status."""
