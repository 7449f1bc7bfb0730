"""python -m charts: write everything that is generated in and from the chart. Needs helm, of PATH or as
`python -m tests.cluster build --with helm` makes it."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys

from charts import CHART, generated


def main() -> int:
    """The exit status: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m charts", description=__doc__)
    parser.add_argument("--helm", default=shutil.which("helm"), metavar="FILE", help="default: helm of PATH")
    helm = parser.parse_args().helm
    if not helm:
        print("error: no helm on PATH; name it with --helm FILE", file=sys.stderr)
        return 1
    try:
        files = generated(helm)
    except subprocess.CalledProcessError as error:
        print(f"error: helm template failed: {error.stderr.strip()}", file=sys.stderr)
        return 1
    for stale in set((CHART / "files" / "crds").glob("*.yaml")) - set(files):
        stale.unlink()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
