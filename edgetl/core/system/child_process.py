"""Child interpreters that import from trusted folders only.

``python -c`` and ``python -m`` put the current folder first on the search path, and ``PYTHONPATH`` may contain it. A ``json.py`` in an
image folder or a bundle would then run in every child (CWE-427, untrusted search path). Therefore children are isolated (``python -I``).
Their search path is that of this process, without its current folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGE_ROOT = Path(__file__).parents[3]
# "sys" is part of the interpreter. Later imports use the search path in the first arguments.
_CODE = (
    "import sys; last = 2 + int(sys.argv[1]); sys.path[:] = sys.argv[2:last]; del sys.argv[1:last]; "
    "from {module} import {function} as run; run(*sys.argv[1:])"
)
# Variables of Python that neither change the search path nor run code.
_HARMLESS = frozenset(
    {"PYTHONHASHSEED", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "PYTHONDONTWRITEBYTECODE"}
)


def trusted_path() -> list[str]:
    """Return ``sys.path`` without relative entries and without the current folder, unless this package is in it."""
    try:
        here = Path.cwd().resolve()
    except OSError:
        # The current folder was deleted: nothing can be imported from it.
        here = None
    if here == _PACKAGE_ROOT.resolve():
        here = None
    found = [entry for entry in sys.path if Path(entry).is_absolute() and Path(entry).resolve() != here]
    return found if str(_PACKAGE_ROOT) in found else [str(_PACKAGE_ROOT), *found]


def child_command(module: str, function: str, *arguments: str) -> list[str]:
    """Return the command of an isolated interpreter that calls ``function`` of ``module`` with ``arguments``."""
    path = trusted_path()
    code = _CODE.format(module=module, function=function)
    flags = ["-I", "-B"] if sys.dont_write_bytecode else ["-I"]
    return [sys.executable, *flags, "-c", code, str(len(path)), *path, *arguments]


def child_environment(**more: str) -> dict[str, str]:
    """Return the environment of this process and ``more``, without variables that add code to Python's search path.

    Interpreters that the child starts (workers of torchrun and ``multiprocessing``) do not search the current folder either.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") or name in _HARMLESS}
    return {**kept, "PYTHONSAFEPATH": "1", **more}
