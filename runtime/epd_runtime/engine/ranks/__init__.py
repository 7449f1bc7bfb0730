"""Tensor parallelism: several processes, the ranks, compute every step of one engine together (models/ranks.py).

    node 0:  API process ──▶ engine process = rank 0 ──▶ rank 1, 2, …     (engine/rank_main.py)
    node 1:  API process ──▶ engine process = rank n ──▶ rank n + 1, …    serves /health, takes no requests

Rank 0 owns scheduler, sampler and everything that faces outwards; the others hold their part of weights and KV pool and
do what it tells. Each has one TCP connection to rank 0, on a port that closes when all have come:

    rank r ── Hello ──▶ rank 0      who it is, and the settings in which all must agree
           ◀── Welcome | Refused    where the process group (gloo, NCCL) meets
           ── Loaded | Failed ──▶   the pages that fit beside its weights
           ◀── Begin                the smallest of those numbers is everybody's
           ◀── Step, Step, …        one per forward pass: its inputs, before rank 0 computes it too

A step's page numbers mean the same on every rank, so one scheduler is enough. Embeddings of images follow their step as
a broadcast; vision towers run on rank 0 only.

When one is lost all end: nobody could compute a step without it. Rank 0 watches every connection, each rank its own,
apart from what they compute; a machine that falls silent is noticed by TCP within SILENCE_SECONDS, a rank that hangs by
the process group's time limit. An exception inside a step is the same: the others wait in the middle of theirs. Who
has one waits CAUSE_SECONDS before it tells, so that the loss which caused it is told instead.
"""

SILENCE_SECONDS = 10.0
STEP_SECONDS = 120.0  # until all ranks have come to the same point of a step
CAUSE_SECONDS = 2.0
