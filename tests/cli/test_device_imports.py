"""Imports of the command line: only the base dependencies of a device."""

from __future__ import annotations

import json
import subprocess
import sys

# Base dependencies, and their own dependencies.
DEVICE = {
    "PIL",
    "_cffi_backend",
    "annotated_doc",
    "annotated_types",
    "click",
    "cryptography",
    "edgetl",
    "markdown_it",
    "mdurl",
    "numpy",
    "pydantic",
    "pydantic_core",
    "pygments",
    "rich",
    "shellingham",
    "typer",
    "typing_extensions",
    "typing_inspection",
}

CODE = """
import json, sys
before = set(sys.modules)
import edgetl.cli.app
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))))
"""


def test_the_command_line_imports_no_library_of_an_extra() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    # multiprocessing gives the main module a second name.
    loaded = {name for name in json.loads(done.stdout) if not name.startswith("_sysconfigdata") and name != "__mp_main__"}
    assert loaded <= DEVICE
