"""Applies the plan as processes of this machine: one supervisor per group, one shim per pod. Linux only.

    rbg up ── supervisor ─┬─ shim ── the pod's command ── whatever it starts
       ▲  unix socket     ├─ shim ── …
    rbg status|scale|down └─ …

Nothing outlives the supervisor: every shim holds a pipe from it and kills its pod when the pipe closes (see shim.py).
"""
