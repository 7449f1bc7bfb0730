"""helm for the chart's tests: found, or built, like the programs of the control plane."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

from charts import CHART, NAMESPACE
from tests.cluster import programs

Json: TypeAlias = dict[str, Any]
HELM = (programs.HELM,)
BUILD_FAILURE = pytest.StashKey[str]()
HELM_SECONDS = 180
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the definitions are long


def documents(text: str) -> list[Json]:
    """The objects in a stream of YAML."""
    return [document for document in yaml.load_all(text, Loader=LOADER) if document]


class HelmError(Exception):
    """helm's complaint."""


class Helm:
    """Runs helm, against a cluster if a kubeconfig is given."""

    def __init__(self, path: Path, folder: Path, kubeconfig: Path | None = None) -> None:
        self.path = path
        self._folder = folder
        self._env = {**os.environ, "HELM_CACHE_HOME": str(folder), "HELM_CONFIG_HOME": str(folder)}
        self._env |= {"HELM_DATA_HOME": str(folder), "KUBECONFIG": str(kubeconfig or os.devnull)}
        self._rendered: dict[tuple[str, ...], str] = {}

    def on(self, kubeconfig: Path) -> Helm:
        """The same against a cluster."""
        return Helm(self.path, self._folder, kubeconfig)

    def __call__(self, *arguments: str | Path) -> str:
        """What helm prints; raises HelmError."""
        command = [str(self.path), *map(str, arguments)]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=HELM_SECONDS)
        if done.returncode:
            raise HelmError(done.stdout + done.stderr)
        return done.stdout

    def objects(self, *arguments: str) -> list[Json]:
        """The objects that the chart makes, definitions left out unless `arguments` ask for them."""
        if arguments not in self._rendered:
            command = ["template", "rbg-operator", str(CHART), "-n", NAMESPACE, "--set", "crds.install=false"]
            self._rendered[arguments] = self(*command, *arguments)
        return documents(self._rendered[arguments])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build helm if a collected test needs it, outside of every test's own time limit."""
    wanted = any("helm" in getattr(item, "fixturenames", ()) for item in session.items)
    if session.config.option.collectonly or not wanted or programs.obstacle(HELM):
        return
    with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        try:
            programs.build(HELM, say=lambda line: print(line, flush=True))
        except (programs.ClusterError, TimeoutError) as error:
            session.config.stash[BUILD_FAILURE] = str(error)


@pytest.fixture(scope="session")
def helm(cluster_programs: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """helm; where it cannot be had tests are skipped, or fail where none may be (CI)."""
    if problem := request.config.stash.get(BUILD_FAILURE, None) or programs.obstacle(HELM):
        if os.environ.get("CI") or os.environ.get("RBG_REQUIRE_CLUSTER"):
            pytest.fail(f"needs helm: {problem}", pytrace=False)
        pytest.skip(f"needs helm: {problem}")
    return Helm(programs.path_of(programs.HELM), tmp_path_factory.mktemp("helm"))
