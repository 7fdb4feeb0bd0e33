"""The classes that `dagster.yaml` names: storage and run launcher. Definitions are in `defs`."""
