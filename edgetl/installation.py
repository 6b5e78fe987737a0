"""Pip command for an extra of edgetl, as this copy was installed: from a wheel, a folder, a repository or a folder of wheels.

An installer records the source in ``direct_url.json`` (PEP 610). A package from a folder of wheels (``--find-links``) has no such file, nor
has a package of a registry. edgetl is on no registry, and another author could publish a package of this name there. Without a recorded
source, the command therefore names the libraries.
"""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_EXTRA_OF_MARKER = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")
_OWN_EXTRAS = re.compile(r"edgetl\[([^\]]+)\]")


def install_command(extra: str, *options: str) -> str:
    """Return the pip command that installs ``extra``, such as ``pip install -e '/home/user/edgetl[train]'``.

    ``options`` are those of ``pip install``, such as ``--upgrade``. The command lists the libraries of the extra if the source of
    the installation is unknown or no longer exists.
    """
    return shlex.join(["pip", "install", *options, *_sources(extra)])


def _sources(extra: str) -> list[str]:
    try:
        package = distribution("edgetl")
    except PackageNotFoundError:
        return ["-e", f"{Path(__file__).parents[1]}[{extra}]"]  # a clone that is on the path without an installation
    record = package.read_text("direct_url.json")
    if record is None:
        return sorted(_requirements(package, extra))
    origin: dict[str, Any] = json.loads(record)
    url = urlsplit(origin["url"])
    if "vcs_info" in origin:
        return [f"edgetl[{extra}] @ {origin['vcs_info']['vcs']}+{origin['url']}@{origin['vcs_info']['commit_id']}"]
    if url.scheme != "file":
        return [f"edgetl[{extra}] @ {origin['url']}"]
    path = Path(unquote(url.path))
    if not path.exists():
        return sorted(_requirements(package, extra))
    editable = origin.get("dir_info", {}).get("editable", False)
    return [*(["-e"] if editable else []), f"{path}[{extra}]"]


def _requirements(package: Distribution, extra: str) -> set[str]:
    """Return the libraries of ``extra`` and of the extras that it includes."""
    found: set[str] = set()
    for line in package.requires or ():
        requirement, _, marker = line.partition(";")
        if extra not in _EXTRA_OF_MARKER.findall(marker):
            continue
        if own := _OWN_EXTRAS.match(requirement.strip()):
            found.update(*(_requirements(package, name.strip()) for name in own[1].split(",")))
        else:
            found.add(requirement.strip())
    return found
