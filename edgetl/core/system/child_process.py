"""Child interpreters that import from trusted places only.

``python -c`` and ``python -m`` put the current folder first on the search path, and ``PYTHONPATH`` may name it too. A ``json.py`` in the
folder of the images, or of a bundle, would then run in every child (CWE-427, untrusted search path). Therefore children are isolated
(``python -I``). Their search path is that of this process, without its current folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGE_ROOT = Path(__file__).parents[3]
# "sys" is part of the interpreter; later imports use the path that the first arguments give.
_CODE = (
    "import sys; last = 2 + int(sys.argv[1]); sys.path[:] = sys.argv[2:last]; del sys.argv[1:last]; "
    "from {module} import {function} as run; run(*sys.argv[1:])"
)
# Variables of Python that change no search path and run no code.
_HARMLESS = frozenset(
    {"PYTHONHASHSEED", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "PYTHONDONTWRITEBYTECODE"}
)


def trusted_path() -> list[str]:
    """``sys.path`` without relative entries and without the current folder, unless this package lies there."""
    try:
        here = Path.cwd().resolve()
    except OSError:
        # It was deleted: nothing can be imported from it.
        here = None
    if here == _PACKAGE_ROOT.resolve():
        here = None
    found = [entry for entry in sys.path if Path(entry).is_absolute() and Path(entry).resolve() != here]
    return found if str(_PACKAGE_ROOT) in found else [str(_PACKAGE_ROOT), *found]


def child_command(module: str, function: str, *arguments: str) -> list[str]:
    """Command of an isolated interpreter that calls ``function`` of ``module`` with ``arguments``."""
    path = trusted_path()
    code = _CODE.format(module=module, function=function)
    flags = ["-I", "-B"] if sys.dont_write_bytecode else ["-I"]
    return [sys.executable, *flags, "-c", code, str(len(path)), *path, *arguments]


def child_environment(**more: str) -> dict[str, str]:
    """This process's environment and ``more``, without variables that put code on a Python's search path.

    Interpreters that such a child starts in turn (torchrun's workers, those of ``multiprocessing``) leave out the current folder too.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") or name in _HARMLESS}
    return {**kept, "PYTHONSAFEPATH": "1", **more}
