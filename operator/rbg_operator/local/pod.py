"""One pod on this machine: its process, its readiness, its crashes. Decides nothing about other pods.

    start()                probe succeeds              probe fails failure_threshold times
    ──────▶ STARTING ────────────────────▶ READY ◀──────────────────────────▶ UNREADY
               │                             │                                    │
               └───────────┬─────────────────┴────────────────────────────────────┘
                           │ the process ends                     │ retire(), then terminate()
                           ▼                                      ▼
       restart() ◀──── EXITED (until retry_at)                 STOPPING ──▶ gone
    retire() of an EXITED pod makes it gone at once.

`changed` is called after every change. A pod that is told to stop and does not in its grace period gets SIGKILL from
its shim; a shim that does not answer is killed too after GIVE_UP seconds more, so stopping always ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping

from rbg_operator.local.backoff import Crashes
from rbg_operator.local.logbook import PodLog
from rbg_operator.local.ports import port_problem
from rbg_operator.local.probing import probe
from rbg_operator.local.process import ShimProcess
from rbg_operator.plan.actions import ObservedPod, Phase
from rbg_operator.plan.probes import AliveProbe
from rbg_operator.plan.processes import PodProcess

STARTING_PERIOD = 0.2  # seconds between probes, unless the manifest says otherwise
READY_PERIOD = 1.0
GIVE_UP = 5.0


class Pod:
    """State of one pod; all methods are called on the event loop and return at once."""

    def __init__(
        self,
        plan: PodProcess,
        env: Mapping[str, str],
        log: PodLog,
        changed: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.phase = Phase.STARTING
        self.restarts = 0
        self.reason = ""  # why it is not ready
        self.crashes = Crashes()
        self.last_exit = ""  # how the latest run ended that was not told to, and the last lines it printed
        self.last_output: list[str] = []
        self.retry_at = 0.0  # time.monotonic()
        self.log = log
        self.gone = False
        self._env = env
        self._changed = changed
        self._note = note
        self._process: ShimProcess | None = None
        self._ready_since: float | None = None
        self._give_up: asyncio.TimerHandle | None = None
        self.run = self._spawn()  # the run now in progress, or the last one

    @property
    def pid(self) -> int:
        """Process id of the command; 0 when none runs."""
        return self._process.pid if self._process else 0

    def observed(self) -> ObservedPod:
        """What the plan needs to know."""
        return ObservedPod(self.phase, self.retry_at)

    def restart(self) -> None:
        """Run again after a crash."""
        self.restarts += 1
        self.phase = Phase.STARTING
        self.run = self._spawn()

    def retire(self) -> None:
        """Enter STOPPING; the process goes on until terminate(), so that the pod leaves discovery first."""
        if self.phase is Phase.EXITED:
            self._end()
        self.phase = Phase.STOPPING
        self.reason = "told to stop"

    def terminate(self) -> None:
        """SIGTERM, then SIGKILL after the grace period."""
        grace = self.plan.grace_seconds
        if self._process and not self.gone and self._give_up is None:
            self._process.stop(grace)
            self._give_up = asyncio.get_running_loop().call_later(grace + GIVE_UP, self._process.abandon)

    def kill(self) -> None:
        """SIGKILL to everything at once."""
        self.retire()
        if self._process:
            self._process.kill()

    def raise_failure(self) -> None:
        """Raise what went wrong in this very program while it handled the pod, if anything did."""
        if self.run.done() and (error := self.run.exception()):
            raise error

    def _spawn(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._run())
        task.add_done_callback(lambda _: self._changed())
        return task

    async def _run(self) -> None:
        """One run of the command, from the check of its port to its end."""
        self._ready_since = None
        self.reason = "starting"
        self.log.last.clear()
        result = await self._run_process()
        if self.phase is Phase.STOPPING:
            self._end()
            return
        ready_seconds = None if self._ready_since is None else time.monotonic() - self._ready_since
        self.crashes = self.crashes.after_crash(ready_seconds)
        self.retry_at = time.monotonic() + self.crashes.delay
        self.phase = Phase.EXITED
        self.reason = self.last_exit = result
        self.last_output = list(self.log.last)
        self._note(f"{result}; runs again in {self.crashes.delay:g} s")

    async def _run_process(self) -> str:
        """Run the command; how it ended."""
        plan = self.plan
        if plan.port is not None and (problem := port_problem(plan.address, plan.port)):
            return problem
        try:
            process = await ShimProcess.start(plan.argv, self._env, plan.working_dir)
        except OSError as error:
            return f"this machine cannot start another process: {error}"
        self._process = process
        if self.phase is Phase.STOPPING:  # told so while the shim was being started
            self.terminate()
        probing = asyncio.create_task(self._watch_readiness())
        try:
            return str(await process.wait(self.log.line))
        finally:
            self._process = None
            probing.cancel()
            await asyncio.wait([probing])
            if self._give_up:
                self._give_up.cancel()

    async def _watch_readiness(self) -> None:
        """Probe for as long as the process runs."""
        settings = self.plan.probe
        alive = settings.check.seconds if isinstance(settings.check, AliveProbe) else 0.0
        await asyncio.sleep(settings.initial_delay + alive)
        good = bad = 0
        while True:
            failure = await probe(self.plan, self._env)
            good, bad = (0, bad + 1) if failure else (good + 1, 0)
            if good >= settings.success_threshold:
                self._become(Phase.READY, "")
            elif bad >= settings.failure_threshold or self.phase is Phase.STARTING:
                self._become(Phase.UNREADY if self.phase is not Phase.STARTING else Phase.STARTING, failure)
            period = settings.period or (READY_PERIOD if self.phase is Phase.READY else STARTING_PERIOD)
            await asyncio.sleep(period)

    def _become(self, phase: Phase, reason: str) -> None:
        if self.phase is Phase.STOPPING:
            return
        self.reason = reason or self.reason if phase is not Phase.READY else ""
        if phase is not self.phase:
            self.phase = phase
            if phase is Phase.READY and self._ready_since is None:
                self._ready_since = time.monotonic()
                self.crashes = dataclasses.replace(self.crashes, was_ready=True)
            self._note("ready" if phase is Phase.READY else f"not ready any more: {reason}")
            self._changed()

    def _end(self) -> None:
        self.gone = True
        self._changed()
