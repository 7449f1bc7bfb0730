"""When things happened to each group, from watch events; pure.

Truth is judged by resourceVersion, not by the order in which two watches happened to deliver: etcd numbers all writes,
so a status that said Ready at version r was false if a pod of the old image was still there, or one of the new not yet
ready, at r.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PodLife:
    """One pod (by uid): resourceVersions at which it first was ready and first was on its way out; None: never seen."""

    image: str
    ready_version: int | None = None
    gone_version: int | None = None


@dataclass
class GroupLife:
    """Times are of one monotonic clock, in seconds. An edit changes the encoder's image to `wanted_image`."""

    created: float
    ready: float | None = None
    edited: float | None = None
    wanted_image: str = ""
    wanted_generation: int = 1
    spec_changed: float | None = None  # the workload carries the new image
    pods_changed: float | None = None  # every encoder pod runs it and is ready
    ready_again: float | None = None
    ready_again_version: int | None = None
    encoders: dict[str, PodLife] = field(default_factory=dict)

    def on_status(self, now: float, version: int, ready: bool, observed_generation: int) -> None:
        """The group's status was seen."""
        if not ready or observed_generation < self.wanted_generation:
            return
        if self.edited is None:
            self.ready = self.ready or now
        elif self.ready_again is None:
            self.ready_again, self.ready_again_version = now, version

    def on_workload(self, now: float, image: str) -> None:
        """The encoder's workload was seen with an image in its template."""
        if self.edited is not None and self.spec_changed is None and image == self.wanted_image:
            self.spec_changed = now

    def on_pod(
        self, now: float, uid: str, version: int, image: str, *, ready: bool, leaving: bool, wanted: int
    ) -> None:
        """An encoder pod was seen; wanted: how many there should be."""
        pod = self.encoders.setdefault(uid, PodLife(image))
        if leaving and pod.gone_version is None:
            pod.gone_version = version
        if ready and not leaving and pod.ready_version is None:
            pod.ready_version = version
        if self.edited is not None and self.pods_changed is None:
            here = [life for life in self.encoders.values() if life.gone_version is None]
            good = [life for life in here if life.image == self.wanted_image and life.ready_version is not None]
            if len(here) == len(good) == wanted:
                self.pods_changed = now

    def lied(self) -> bool:
        """Whether the first Ready after the edit came while old pods ran or new ones were not ready."""
        at = self.ready_again_version
        if at is None:
            return False
        old = [life for life in self.encoders.values() if life.image != self.wanted_image]
        new = [life for life in self.encoders.values() if life.image == self.wanted_image and life.gone_version is None]
        still_there = any(life.gone_version is None or life.gone_version > at for life in old)
        return still_there or any(life.ready_version is None or life.ready_version > at for life in new)

    def truly_ready(self) -> float | None:
        """Seconds from the edit until the pods were right and the status said so."""
        if self.edited is None or self.ready_again is None or self.pods_changed is None:
            return None
        return max(self.ready_again, self.pods_changed) - self.edited


def percentile(values: list[float], share: float) -> float:
    """Nearest-rank percentile; nan for no values."""
    if not values:
        return float("nan")
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
