"""Turns a RoleBasedGroup into running roles: as pods on Kubernetes or as processes on this machine."""
