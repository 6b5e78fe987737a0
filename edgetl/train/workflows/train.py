"""``edgetl train`` in one call: check paths and options, scan, split, and fine-tune or compare."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from edgetl.core.output.folders import reserved
from edgetl.core.progress import Progress, silent
from edgetl.data.split import split
from edgetl.train.artifacts.run import Run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.paths import training_inputs
from edgetl.train.config.resolve import check_conflicts
from edgetl.train.config.tasks import scan_images
from edgetl.train.loop.processes import rank
from edgetl.train.workflows.compare import compare
from edgetl.train.workflows.finetune import fine_tune


def train(data: Path, config: TrainConfig, out: Path, *, overwrite: bool = False, resume: bool = False, progress: Progress = silent) -> Run:
    """Scan and split ``data``, then ``fine_tune``, or ``compare`` by ``config.optim.strategy``; their docstrings list the errors.

    ``out`` is checked and locked before the first image is read.
    """
    inputs = training_inputs(data, config)
    check_conflicts(config)
    with reserved(out, inputs=inputs, overwrite=overwrite) if rank() == 0 else nullcontext():
        folder = scan_images(data, config.data, progress=progress)
        splits = split(folder, seed=config.run.seed, val=config.data.val, test=config.data.test)
        workflow = compare if config.optim.strategy == "compare" else fine_tune
        return workflow(splits, config, out, overwrite=overwrite, resume=resume, progress=progress)
