"""Current folder with modules that no command may import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Modules of the standard library and of the libraries that commands import, and modules that Python imports at its start.
MODULES = (
    "json",
    "random",
    "os",
    "sys",
    "site",
    "sitecustomize",
    "usercustomize",
    "typing",
    "socket",
    "struct",
    "signal",
    "logging",
    "subprocess",
    "multiprocessing",
    "resource",
    "runpy",
    "tempfile",
    "pickle",
    "numpy",
    "PIL",
    "pydantic",
    "pydantic_core",
    "onnxruntime",
    "openvino",
    "uvicorn",
    "starlette",
    "torch",
    "torchvision",
    "timm",
    "lightning_fabric",
    "sklearn",
    "scipy",
    "edgetl",
    "encodings",
    "warnings",
)


class HostileFolder:
    """Folder with hostile modules. Each one writes its name into a file if it is imported."""

    def __init__(self, root: Path) -> None:
        self.path, self._marker = root / "here", root / "imported"
        self.path.mkdir()
        for name in MODULES:
            self.path.joinpath(f"{name}.py").write_text(f"open({str(self._marker)!r}, 'a').write('{name}\\n')\nraise SystemExit(99)\n")
        script = root / "bin/edgetl"
        script.parent.mkdir()
        # The script that an installer writes.
        script.write_text("import sys\nfrom edgetl.cli.app import main\nsys.exit(main())\n")
        self._command = [sys.executable, str(script)]

    def command(self, *arguments: object) -> list[str]:
        """Return the installed command with ``arguments``."""
        return [*self._command, *map(str, arguments)]

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the command in this folder."""
        return subprocess.run(self.command(*arguments), cwd=self.path, capture_output=True, text=True, check=False)

    @property
    def imported(self) -> list[str]:
        """Names of the hostile modules that were imported."""
        return self._marker.read_text().splitlines() if self._marker.exists() else []
