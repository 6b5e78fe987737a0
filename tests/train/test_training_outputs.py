"""Output folders of training: inputs are never overwritten, and FIFOs never block."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.core.output.ownership import foreign_files
from edgetl.errors import BackboneError, ConfigError, DataError, EdgetlError
from edgetl.export.config import ExportConfig
from edgetl.export.package import export_bundle
from edgetl.export.to_hub import share_run
from edgetl.pretrain.pretrain import Folders, pretrain
from edgetl.pretrain.recipe import read_recipe
from edgetl.train.artifacts.loading.weights import load_tensors
from edgetl.train.artifacts.run import Run
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.recipe import read_recipe as read_tuning_recipe
from edgetl.train.config.weights_dir import sha256_of
from edgetl.train.loop.checkpoints import Checkpoints
from edgetl.train.loop.resume import Job
from edgetl.train.workflows.runs.prune import prune_run
from edgetl.train.workflows.train import train


def tree(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_train_overwrites_neither_its_images_nor_unrelated_files(colors: Path) -> None:
    documents = colors.parent / "documents"
    documents.mkdir()
    (documents / "thesis.tex").touch()
    before = tree(colors.parent)
    for out in (colors, colors / "run", colors / "red", documents):
        with pytest.raises(ConfigError):
            train(colors, TrainConfig(), out, overwrite=True)
    assert tree(colors.parent) == before


@pytest.mark.parametrize(
    "work",
    [
        lambda run, out: export_bundle(run, ExportConfig(), out, overwrite=True),
        lambda run, out: share_run(run, out, overwrite=True),
        lambda run, out: prune_run(run, out, overwrite=True),
    ],
    ids=["export", "share", "prune"],
)
def test_commands_on_a_run_never_overwrite_it(run: Run, work: Callable[[Path, Path], object]) -> None:
    before = tree(run.path)
    for out in (run.path, run.path / "below"):
        with pytest.raises(ConfigError, match="the run"):
            work(run.path, out)
    assert tree(run.path) == before


def test_export_does_not_write_into_the_image_folder_of_the_run(run: Run, digits: Path) -> None:
    with pytest.raises(ConfigError, match="is inside the folder of images"):
        export_bundle(run.path, ExportConfig(), digits / "bundle")
    assert not (digits / "bundle").exists()


def test_foreign_files_recognizes_all_files_of_a_run(run: Run) -> None:
    assert list(foreign_files(run.path)) == []


def test_removing_saved_states_keeps_user_files(tmp_path: Path) -> None:
    folder = tmp_path / "run.checkpoints"
    folder.mkdir()
    (folder / "notes.txt").touch()
    (folder / f"step-00000001-{'0' * 16}.safetensors").touch()
    Checkpoints(folder, Job(data="", options={}, resolved={})).remove()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_fifo_is_rejected_as_recipe_weights_and_label_table(colors: Path, tmp_path: Path) -> None:
    for name in ("pipe.toml", "pipe.pth", "pipe.safetensors", "pipe.csv"):
        os.mkfifo(tmp_path / name)
    attempts: list[tuple[type[EdgetlError], Callable[[], object]]] = [
        (ConfigError, lambda: read_recipe(tmp_path / "pipe.toml")),
        (ConfigError, lambda: read_tuning_recipe(str(tmp_path / "pipe.toml"))),
        (BackboneError, lambda: load_tensors(tmp_path / "pipe.pth")),
        (BackboneError, lambda: load_tensors(tmp_path / "pipe.safetensors")),
        (DataError, lambda: train(colors, TrainConfig.from_options(labels=str(tmp_path / "pipe.csv")), tmp_path / "run")),
    ]
    for error, attempt in attempts:
        with pytest.raises(error, match="not a regular file"):
            attempt()
    with pytest.raises(OSError, match="not a regular file"):
        sha256_of(tmp_path / "pipe.pth")


def test_pretrain_does_not_overwrite_a_foreign_file(tmp_path: Path) -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "models" / "routes" / "fractals.toml")
    weights = tmp_path / f"{recipe.name}.safetensors"
    weights.write_text("precious")
    with pytest.raises(ConfigError, match="which edgetl pretrain did not write"):
        pretrain(recipe, Folders(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [weights.name]
    assert weights.read_text() == "precious"


def test_train_locks_its_output_folder_before_reading_images(colors: Path, tmp_path: Path) -> None:
    started, resume = threading.Event(), threading.Event()

    def pause(stage: str, done: int, total: int) -> None:
        started.set()
        resume.wait()
        raise ConfigError("stop")

    def first() -> None:
        with pytest.raises(ConfigError, match="stop"):
            train(colors, TrainConfig(), tmp_path / "run", progress=pause)

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait()
    try:
        with pytest.raises(ConfigError, match="another process is writing"):
            train(colors, TrainConfig(), tmp_path / "run", overwrite=True)
    finally:
        resume.set()
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["colors"]
