"""Runs one group on this machine: observes its pods, asks the plan what to do, does it, and waits for the next change.

The supervisor holds no step counter: what happens next follows from the group as desired and the pods as they are. To
end the group is to scale every role to nothing; the plan then stops it in reverse order, and when no pod is left the
supervisor ends. Order within one pass matters: pods to stop leave the hosts file before they get SIGTERM.

Failures: a pod's crash is a change like any other. An exception in this program kills every pod and ends the supervisor
with that exception; the shims do the same if it is killed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from typing import Any

from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.colours import BOLD, OF_PODS, paint
from rbg_operator.local import control, hosts
from rbg_operator.local.addresses import next_address
from rbg_operator.local.environment import process_argv, process_environment
from rbg_operator.local.logbook import PodLog, Terminal
from rbg_operator.local.orphans import become_subreaper
from rbg_operator.local.pod import GIVE_UP, Pod
from rbg_operator.local.preflight import LocalError, check_ports, check_size
from rbg_operator.local.report import GroupReport, GroupState, unready
from rbg_operator.local.snapshot import entry_url, report_roles
from rbg_operator.local.state import GroupFolder
from rbg_operator.plan.actions import ObservedPod, Phase, PodId, Restart, Start, Stop, actions, is_ready
from rbg_operator.plan.order import start_order
from rbg_operator.plan.processes import PodProcess, plan_process

KILL_SECONDS = 5.0  # for everything to be gone after SIGKILL


class Supervisor:
    """One group. Make it, then await run()."""

    def __init__(self, group: RoleBasedGroup, folder: GroupFolder, terminal: Terminal, show_pods: bool) -> None:
        self.group = group
        self._folder = folder
        self._terminal = terminal
        self._show_pods = show_pods
        self._plans: dict[PodId, PodProcess] = {}
        self._pods: dict[PodId, Pod] = {}
        self._changed = asyncio.Event()
        self._hosts_text: str | None = None
        self._started = time.monotonic()
        self._state = GroupState.STARTING
        self._told_failing: set[PodId] = set()
        self._exit_code = 0

    async def run(self, ready_within: float | None) -> int:
        """Until the group has been taken down, which happens by itself if it is not ready within so many seconds.

        Returns the exit code for the command. Raises LocalError before anything starts if a port is taken.
        """
        self._plan_pods()
        check_ports(self._plans.values())
        become_subreaper()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)
        server = await control.serve(self._folder.socket, self.handle)
        try:
            await self._supervise(ready_within)
        finally:
            server.close()
            await self._kill_rest()
        return self._exit_code

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of another rbg command (see control.py); ValueError for what cannot be done."""
        match request:
            case {"command": "status"}:
                return {"group": dataclasses.asdict(self.report())}
            case {"command": "scale", "replicas": dict(replicas)}:
                return {"text": self._scale(replicas)}
            case {"command": "down"}:
                self._end("asked to")
                return {"seconds": self._longest_end()}
        raise ValueError("unknown command; this supervisor and this rbg may be of different versions")

    def report(self) -> GroupReport:
        """The state of everything, now."""
        return GroupReport(
            name=self.group.name,
            namespace=self.group.namespace,
            state=self._state,
            url=entry_url(self.group, self._plans),
            supervisor_pid=os.getpid(),
            uptime_seconds=round(time.monotonic() - self._started, 1),
            roles=report_roles(self.group, self._plans, self._pods),
        )

    async def _supervise(self, ready_within: float | None) -> None:
        deadline = None if ready_within is None else self._started + ready_within
        while True:
            self._reconcile()
            if self._state is GroupState.STOPPING and not self._pods:
                return
            if self._state not in (GroupState.STARTING, GroupState.FAILING):
                deadline = None  # it has been ready, or it ends anyway
            if deadline is not None and time.monotonic() >= deadline:
                self._say(f"{self.group.name} is not ready after {ready_within:g} s:\n{unready(self.report())}")
                self._exit_code = 1
                self._end("out of time")
            else:
                await self._wait(deadline)

    async def _wait(self, deadline: float | None) -> None:
        """Until something changes, a backoff is over, or the deadline."""
        times = [pod.retry_at for pod in self._pods.values() if pod.phase is Phase.EXITED]
        if deadline is not None:
            times.append(deadline)
        try:
            async with asyncio.timeout(max(0.0, min(times) - time.monotonic()) if times else None):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()

    def _reconcile(self) -> None:
        """One pass: forget what is gone, do what the plan says, tell what changed."""
        for key, pod in list(self._pods.items()):
            pod.raise_failure()
            if pod.gone:
                pod.log.close()
                del self._pods[key]
                del self._plans[key]
        self._plan_pods()
        todo = actions(self.group, self._observed(), time.monotonic())
        stopping = [self._pods[action.pod] for action in todo if isinstance(action, Stop)]
        for pod in stopping:
            pod.retire()
        self._write_hosts()
        for pod in stopping:
            self._say_pod(pod.plan.pod, "stopping")
            pod.terminate()
        for action in todo:
            if isinstance(action, Start):
                self._start(action.pod)
            elif isinstance(action, Restart):
                self._pods[action.pod].restart()
        self._update_state()

    def _plan_pods(self) -> None:
        """Give every desired pod an address and a process; both stay while the pod exists."""
        for role in self.group.roles:
            for ordinal in range(role.replicas):
                key = PodId(role.name, ordinal)
                if key not in self._plans:
                    address = next_address(self._folder.block, {plan.address for plan in self._plans.values()})
                    self._plans[key] = plan_process(self.group, key, address)
        for key in [key for key in self._plans if key not in self._pods and not self._desired(key)]:
            del self._plans[key]

    def _start(self, key: PodId) -> None:
        plan = dataclasses.replace(self._plans[key], argv=process_argv(self._plans[key]))
        env = process_environment(plan, self._folder.hosts, self._folder.token)
        path = self._folder.logs / f"{plan.name}.log"
        log = PodLog(path, self._prefix(key), self._terminal if self._show_pods else None)
        self._pods[key] = Pod(plan, env, log, self._changed.set, lambda text: self._say_pod(key, text))

    def _write_hosts(self) -> None:
        """Only what changed: readers look at the file's time."""
        listed = [(plan, self._is_ready(key)) for key, plan in self._plans.items() if self._desired(key)]
        text = hosts.render(listed)
        if text != self._hosts_text:
            hosts.replace(self._folder.hosts, text)
            self._hosts_text = text

    def _update_state(self) -> None:
        """Follow the pods' states; print transitions once."""
        if self._state is GroupState.STOPPING:
            return
        for key, pod in self._pods.items():
            if pod.crashes.failing and key not in self._told_failing:
                self._told_failing.add(key)
                self._say_pod(key, f"has not started in {pod.crashes.count} attempts; it will be tried again")
        before = self._state
        if is_ready(self.group, self._observed()):
            self._state = GroupState.READY
        elif before in (GroupState.READY, GroupState.DEGRADED):
            self._state = GroupState.DEGRADED
        else:
            failing = any(pod.crashes.failing for pod in self._pods.values())
            self._state = GroupState.FAILING if failing else GroupState.STARTING
        if self._state is not before and self._state is not GroupState.FAILING:
            url = entry_url(self.group, self._plans) if self._state is GroupState.READY else ""
            self._say(f"{self.group.name} is {self._state}" + (f": {url}" if url else ""))

    def _scale(self, replicas: dict[Any, Any]) -> str:
        """Change the desired number of pods; all of it or nothing."""
        if self._state is GroupState.STOPPING:
            raise ValueError("the group is being taken down")
        group = self.group
        for name, number in replicas.items():
            if name not in {role.name for role in group.roles}:
                known = ", ".join(role.name for role in group.roles)
                raise ValueError(f'no role is called "{name}"; roles are {known}')
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise ValueError(f"{name}: the number of pods must be 0 or more, not {number!r}")
            group = group.with_replicas(name, number)
        try:
            check_size(group)
        except LocalError as error:
            raise ValueError(str(error)) from error
        changes = [f"{name} {self.group.role(name).replicas} -> {number}" for name, number in replicas.items()]
        self.group = group
        self._changed.set()
        self._say(f"scaling {', '.join(changes)}")
        return ", ".join(changes)

    def _end(self, why: str) -> None:
        """Take the group down in reverse order."""
        if self._state is not GroupState.STOPPING:
            self._state = GroupState.STOPPING
            self._say(f"stopping {self.group.name} ({why})")
            for role in self.group.roles:
                self.group = self.group.with_replicas(role.name, 0)
            self._changed.set()

    def _longest_end(self) -> float:
        """Seconds in which taking the group down ends for certain."""
        graces = {name: 0.0 for level in start_order(self.group.roles) for name in level}
        for key, plan in self._plans.items():
            graces[key.role] = max(graces[key.role], plan.grace_seconds + GIVE_UP)
        return sum(max(graces[name] for name in level) for level in start_order(self.group.roles)) + KILL_SECONDS

    def _signalled(self, number: signal.Signals) -> None:
        """The first signal ends the group in order, the second at once."""
        if self._state is not GroupState.STOPPING:
            self._end(f"{number.name}; once more kills it")
            return
        self._exit_code = 128 + number
        self._say(f"killing {self.group.name}")
        for pod in self._pods.values():
            pod.kill()

    async def _kill_rest(self) -> None:
        """Nothing may be left, whatever went wrong before."""
        for pod in self._pods.values():
            pod.kill()
        runs = [pod.run for pod in self._pods.values()]
        if runs:
            await asyncio.wait(runs, timeout=KILL_SECONDS)

    def _desired(self, key: PodId) -> bool:
        return key.ordinal < self.group.role(key.role).replicas

    def _is_ready(self, key: PodId) -> bool:
        return key in self._pods and self._pods[key].phase is Phase.READY

    def _observed(self) -> dict[PodId, ObservedPod]:
        return {key: pod.observed() for key, pod in self._pods.items()}

    def _prefix(self, key: PodId) -> str:
        """Start of the pod's lines on the terminal, one colour for each role."""
        names = [role.name for role in self.group.roles]
        width = max(len(name) for name in names) + 3
        colour = OF_PODS[names.index(key.role) % len(OF_PODS)]
        return paint(f"{key.role}-{key.ordinal}".ljust(width) + "| ", colour, self._terminal.colour)

    def _say(self, text: str) -> None:
        self._terminal.line(paint(text, BOLD, self._terminal.colour))

    def _say_pod(self, key: PodId, text: str) -> None:
        self._terminal.line(self._prefix(key) + paint(text, BOLD, self._terminal.colour))
