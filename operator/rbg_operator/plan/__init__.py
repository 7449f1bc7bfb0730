"""What must exist and happen for a RoleBasedGroup: names, injected environment, order, actions. Pure and deterministic.

Nothing here knows whether a pod is a Kubernetes pod or a process on this machine; an applier observes, asks `actions`,
applies, and asks again.
"""
