"""What all pods of a group or role print, each line with the pod's name before it.

One `kubectl logs` for each run of a container. While following, pods are listed every few seconds: new ones join, a
container that restarted is read from its start, and a connection that broke goes on after the last line that was seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field

from rbg_operator.colours import OF_PODS, paint
from rbg_operator.kubectl.cluster import get_pods
from rbg_operator.kubectl.kubectl import Kubectl, KubectlError, explain
from rbg_operator.plan.observed import ContainerStatus, Pod

MAX_STREAMS = 40  # each is a kubectl of some 40 MB
MAX_LINE = 1024 * 1024
POLL_SECONDS = 2.0
READ_SECONDS = 60.0  # to read what is there already, without following

Show = Callable[[str], None]


@dataclass(frozen=True, order=True)
class Source:
    """One run of one container."""

    pod: str
    uid: str
    container: str
    restarts: int
    running: bool = field(compare=False)


def sources(pods: Iterable[Pod]) -> list[Source]:
    """Every container that runs or ran; init containers only until they are done."""
    found = []
    for pod in pods:
        unfinished = [status for status in pod.status.init_container_statuses if not _is_done(status)]
        for status in (*unfinished, *pod.status.container_statuses):
            running = status.state.waiting is None and status.state.terminated is None
            if running or status.state.terminated or status.last_state.terminated:
                source = Source(pod.metadata.name, pod.metadata.uid, status.name, status.restart_count, running)
                found.append(source)
    return sorted(found)


def _is_done(status: ContainerStatus) -> bool:
    return status.state.terminated is not None and status.state.terminated.exit_code == 0


class Prefixes:
    """The text before each line: the pod without the group's name, its container where there are several."""

    def __init__(self, group: str, colour: bool) -> None:
        self._group = group
        self._colour = colour
        self._codes: dict[str, int] = {}
        self._several: set[str] = set()
        self._width = 0

    def learn(self, found: Iterable[Source]) -> None:
        """Give new pods a colour, and the column the width of the longest name."""
        containers: dict[str, set[str]] = {}
        for source in found:
            self._codes.setdefault(source.pod, OF_PODS[len(self._codes) % len(OF_PODS)])
            containers.setdefault(source.pod, set()).add(source.container)
        self._several |= {pod for pod, names in containers.items() if len(names) > 1}
        self._width = max([self._width, *(len(self._name(source)) for source in found)])

    def of(self, source: Source) -> str:
        """Prefix of a source that was learnt."""
        return paint(f"{self._name(source):<{self._width}} │", self._codes[source.pod], self._colour) + " "

    def _name(self, source: Source) -> str:
        short = source.pod.removeprefix(f"{self._group}-")
        return f"{short}/{source.container}" if source.pod in self._several else short


class Logs:
    """Reads the logs of a group's pods. tail: lines of each container to begin with, -1 for all."""

    def __init__(self, kubectl: Kubectl, group: str, role: str, tail: int, colour: bool, show: Show) -> None:
        self._kubectl = kubectl
        self._group = group
        self._role = role
        self._tail = tail
        self._show = show
        self._prefixes = Prefixes(group, colour)
        self._last: dict[Source, str] = {}  # time of the last line seen
        self._told: set[str] = set()

    async def once(self) -> None:
        """Print what there is, in order of time. Raises KubectlError if no container runs or ran."""
        found = await self._sources()
        if not found:
            raise KubectlError(f"nothing of {self._what()} runs yet; see: kubectl rbg status {self._group}")
        limit = asyncio.Semaphore(8)

        async def read(source: Source) -> list[tuple[str, str]]:
            async with limit, asyncio.timeout(READ_SECONDS), contextlib.aclosing(self._stream(source)) as stream:
                return [(time, self._prefixes.of(source) + line) async for time, line in stream]

        try:
            printed = await asyncio.gather(*(read(source) for source in found))
        except TimeoutError as error:
            message = f"the logs could not be read within {READ_SECONDS:g} s; ask for fewer lines with --tail"
            raise KubectlError(message, "Timeout") from error
        for _, line in sorted((item for items in printed for item in items), key=lambda item: item[0]):
            self._show(line)

    async def follow(self) -> None:
        """Print what there is and what comes, until cancelled."""
        running: dict[Source, asyncio.Task[None]] = {}
        found = await self._sources()
        tail = self._tail
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    for source in found:
                        if source not in running or (source.running and running[source].done()):
                            running[source] = tasks.create_task(self._follow_one(source, tail))
                    tail = -1  # what starts from now on is read from its beginning
                    await asyncio.sleep(POLL_SECONDS)
                    found = await self._sources_again()
        except* (KubectlError, BrokenPipeError) as errors:
            raise errors.exceptions[0] from None

    async def _follow_one(self, source: Source, tail: int) -> None:
        async with contextlib.aclosing(self._stream(source, tail)) as stream:
            async for _, line in stream:
                self._show(self._prefixes.of(source) + line)

    async def _sources(self) -> list[Source]:
        found = sources(await asyncio.to_thread(get_pods, self._kubectl, self._group, self._role))
        if len(found) > MAX_STREAMS:
            message = f"{self._what()} has {len(found)} containers, at most {MAX_STREAMS} can be read at once; "
            raise KubectlError(message + ("use kubectl logs POD" if self._role else "say which role"))
        self._prefixes.learn(found)
        return found

    async def _sources_again(self) -> list[Source]:
        """The sources now; none new while the API server cannot be asked."""
        try:
            return await self._sources()
        except KubectlError as error:
            self._tell(str(error))
            return []

    async def _stream(self, source: Source, tail: int | None = None) -> AsyncGenerator[tuple[str, str], None]:
        """(time, line) of one container; tail is given when following, which goes on until the container ends."""
        seen = self._last.get(source, "")
        start = f"--since-time={seen}" if seen else f"--tail={self._tail if tail is None else tail}"
        flags = ["--timestamps", start, *(["--follow"] if tail is not None else [])]
        command = self._kubectl.argv("logs", source.pod, "-c", source.container, *flags)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, limit=MAX_LINE)
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.ensure_future(process.stderr.read(4096))
        try:
            while raw := await self._line(process.stdout):
                time, _, line = raw.decode(errors="replace").rstrip("\n").partition(" ")
                if time > seen:  # since-time brings lines of that second again
                    self._last[source] = time
                    yield time, line
            if await process.wait() != 0:
                self._tell(f"{source.pod}: {explain((await errors).decode(errors='replace'), ['logs'])}")
        finally:
            errors.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _line(self, stream: asyncio.StreamReader) -> bytes:
        """The next line that fits; b"" at the end."""
        while True:
            try:
                return await stream.readline()
            except ValueError:
                self._tell(f"lines of more than {MAX_LINE} bytes are left out")

    def _tell(self, message: str) -> None:
        """Say something beside the logs, once."""
        if message not in self._told and len(self._told) < 1000:
            self._told.add(message)
            print(f"kubectl rbg: {message}", file=sys.stderr)

    def _what(self) -> str:
        return f"role {self._role} of {self._group}" if self._role else f"group {self._group}"
