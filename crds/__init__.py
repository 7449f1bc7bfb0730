"""The operator's four custom resource definitions: one description in Python, from which the YAML here is made.

`python -m crds` writes the YAML; a test fails when the two differ.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def crd_files() -> list[Path]:
    """The generated CustomResourceDefinitions, one YAML document a file, in order of name."""
    return sorted(FOLDER.glob("*.yaml"))
