"""`docs/tables.py`, which is no part of the package, as a module."""

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("tables", Path(__file__).parents[1] / "docs" / "tables.py")
assert spec is not None
assert spec.loader is not None
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)
