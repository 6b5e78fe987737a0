"""Memory limit of a runner: an image that needs too much memory is an error of this image, not the end of the process."""

from __future__ import annotations

import os
from pathlib import Path

from edgetl.core.system.cgroup import memory_limit
from edgetl.runtime.trial import limit_process

# Memory that the process may always allocate, bytes: a photo of 12 million pixels and its tensors.
_LEAST_BYTES = 100_000_000


def follow_memory_limit() -> int | None:
    """Limit the private memory of this process to the limit of its control group. Call this after the model is loaded.

    Without this limit, the kernel kills the process when it exceeds the group's limit, for instance when it decodes a huge image.

    Returns:
        the limit of the control group, bytes; none without a limit.
    """
    limit = memory_limit()
    if limit is not None:
        resident = int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        limit_process(max(_LEAST_BYTES, limit - resident))
    return limit
