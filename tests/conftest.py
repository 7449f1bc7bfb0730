"""A real Kubernetes control plane for every test that asks for one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.cluster import control_plane as clusters
from tests.cluster import programs
from tests.cluster.control_plane import ControlPlane


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what the collected tests need, outside of every test's own time limit, with progress on the terminal."""
    if session.config.option.collectonly or programs.obstacle():
        return
    if any("control_plane" in getattr(item, "fixturenames", ()) for item in session.items):
        capture = session.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            programs.build(say=lambda line: print(line, flush=True))


@pytest.fixture(scope="session")
def cluster_programs() -> None:
    """A machine that can run control planes; elsewhere tests are skipped, and fail where none may be (CI)."""
    if problem := programs.obstacle():
        if os.environ.get("CI") or os.environ.get("RBG_REQUIRE_CLUSTER"):
            pytest.fail(f"a test needs a control plane: {problem}")
        pytest.skip(f"needs a control plane: {problem}")


@pytest.fixture(scope="session")
def control_plane(cluster_programs: None) -> Iterator[ControlPlane]:
    """One control plane for the whole session; tests keep apart by namespaces."""
    with clusters.up(f"pytest-{os.getpid()}") as running:
        yield running


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of the test's own; its deletion goes on after the test."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    control_plane.make_namespace(name)
    yield name
    control_plane.delete_namespace(name)
