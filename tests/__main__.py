"""``python -m tests [options of pytest]``: every test, in two processes side by side, so that two cores are busy.

Two also because torch's loaders answer signals, while OpenVINO and gevent (Triton's client) leave signal state behind. Each computes with
one thread. What the second one says comes at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile


def main(options: list[str]) -> int:
    """The exit code: 0 where both are."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryFile("w+") as said:
        train = subprocess.Popen([*command, "tests/train"], stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            first = subprocess.run([*command, "--ignore=tests/train"], env=environment, check=False).returncode
            second = train.wait()
        finally:
            train.kill()
        said.seek(0)
        print(said.read())
    return first or second


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
