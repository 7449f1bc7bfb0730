"""A real Kubernetes control plane for every test that asks for one, and a setting that must come before all imports."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.cluster import control_plane as clusters
from tests.cluster import programs
from tests.cluster.control_plane import ControlPlane

if not os.path.exists("/dev/nvidiactl"):  # Triton decides for its interpreter when it is imported first
    os.environ["TRITON_INTERPRET"] = "1"

BUILD_FAILURE = pytest.StashKey[str]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what the collected tests need, outside of every test's own time limit, with progress on the terminal."""
    wanted = any("cluster_programs" in getattr(item, "fixturenames", ()) for item in session.items)
    if session.config.option.collectonly or not wanted or programs.obstacle():
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            programs.build(say=lambda line: print(line, flush=True))
        except (programs.ClusterError, TimeoutError) as error:
            session.config.stash[BUILD_FAILURE] = str(error)


@pytest.fixture(scope="session")
def cluster_programs(request: pytest.FixtureRequest) -> None:
    """A machine that can run control planes; elsewhere tests are skipped, or fail where none may be (CI)."""
    if problem := request.config.stash.get(BUILD_FAILURE, None) or programs.obstacle():
        if os.environ.get("CI") or os.environ.get("RBG_REQUIRE_CLUSTER"):
            pytest.fail(f"needs a control plane: {problem}", pytrace=False)
        pytest.skip(f"needs a control plane: {problem}")


@pytest.fixture(scope="session")
def control_plane(cluster_programs: None) -> Iterator[ControlPlane]:
    """One for the whole session, or the running one that RBG_CLUSTER names; tests keep apart by namespaces."""
    if name := os.environ.get("RBG_CLUSTER"):
        yield clusters.attach(name)
        return
    with clusters.up(f"pytest-{os.getpid()}") as running:
        yield running


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of the test's own; its deletion goes on after the test."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    control_plane.make_namespace(name)
    yield name
    control_plane.delete_namespace(name)
