"""Decides what to do next about a group: pure functions of its rendering and a snapshot.

roles, workload, pods, owned, previous                      what is observed
start, rollout, policy, replace, workers, objects           how roles come and change
decisions, doomed, telling                                  what ties these together
restart, scaling, history, immutable                        restart policies, adapters, revisions, rebuilding
removal, teardown, deleting                                 how roles and groups go
phases, conditions, status, events, evidence, reporting     what is told
make_plan, invalid, groupset                                the three plans
"""

from rbg_operator.plan.decide.groupset import groupset_plan
from rbg_operator.plan.decide.identity import Identity
from rbg_operator.plan.decide.invalid import invalid_plan
from rbg_operator.plan.decide.make_plan import make_plan
from rbg_operator.plan.decide.scaling import effective

__all__ = ["Identity", "effective", "groupset_plan", "invalid_plan", "make_plan"]
