"""helm for the chart's tests: found, or built like the programs of the control plane."""

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


@pytest.fixture(scope="session")
def helm(cluster_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """The helm of tests/cluster; building it takes a minute or two, once."""
    try:
        programs.build([programs.HELM])
    except programs.ClusterError as error:
        if os.environ.get("CI") or os.environ.get("RBG_REQUIRE_CLUSTER"):
            pytest.fail(f"needs helm: {error}", pytrace=False)
        pytest.skip(f"needs helm: {error}")
    return Helm(programs.path_of(programs.HELM), tmp_path_factory.mktemp("helm"))
