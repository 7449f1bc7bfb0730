"""`python -m crds`: write the YAML of every definition next to this file."""

from crds import FOLDER
from crds.definition import as_yaml
from crds.kinds import definitions

if __name__ == "__main__":
    for definition in definitions():
        path = FOLDER / f"{definition['spec']['names']['plural']}.yaml"
        path.write_text(as_yaml(definition), encoding="utf-8")
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
