"""Batch scoring: rows of every kind of input, shards, resume, refused parts, and merge."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import edgetl
from edgetl.core.bundle import open_bundle
from edgetl.core.output.locks import locked
from edgetl.data.inputs.blocks import Shard, ShardInput
from edgetl.data.inputs.sources import find_sources
from edgetl.errors import ConfigError, DataError, MissingExtraError, StorageError
from edgetl.scoring import part
from edgetl.scoring.config import ScoringConfig, ScoringModel
from edgetl.scoring.cost import plan_scoring
from edgetl.scoring.job import score
from edgetl.scoring.merge import merge
from edgetl.scoring.record import Counts, PartFiles, PartProgress, PartRecord
from edgetl.scoring.score import PartTask, _Scorer, load_predictor, score_block, score_part
from tests.command import Command
from tests.command import edgetl as command
from tests.data.shards import colored, write_shard, write_shards
from tests.device.bundles import write_bundle
from tests.disks import small_disk

ONE = Shard(0, 1)


@pytest.fixture(scope="module")
def colors_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle with a tiny network."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "colors", 1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with three shards: a good one, one with a damaged image and a link, and a truncated one."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, shards=3, images=40)
    files = {f"01/{index:04d}.png": colored(index) for index in range(40)}
    files["01/0007.png"] = b"no image"
    write_shard(folder / "01.tar", files)
    data = (folder / "02.tar").read_bytes()
    (folder / "02.tar").write_bytes(data[: 50 * 1024 + 520])
    return folder


def task_of(bundle: Path, inputs: Path | str, out: Path, *, shard: Shard = ONE, **options: Any) -> PartTask:
    return PartTask(ScoringModel(bundle=bundle), (str(inputs),), out, shard, ScoringConfig(**options), threads=2)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def all_parts(task: PartTask, count: int) -> None:
    for index in range(count):
        score_part(replace(task, shard=Shard(index, count)))


def test_predictions_equal_those_of_the_predictor_and_bad_images_are_rows(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    report = score(task_of(colors_bundle, shards / "{00..02}.tar", tmp_path, scores=True))
    rows = rows_of(tmp_path / "part-0-of-1.jsonl")
    assert (report.counts.images, report.counts.errors, report.counts.left_out) == (104, 2, {".cls": 65})
    assert [row["item"] for row in rows] == [*range(40), *range(40), *range(26)]
    failed = [row for row in rows if "error" in row]
    assert [(Path(row["file"]).name, row.get("key")) for row in failed] == [("01.tar", "01/0007"), ("02.tar", None)]
    assert "not a JPEG, PNG" in failed[0]["error"] and "damaged or truncated" in failed[1]["error"]
    predictor = edgetl.load(colors_bundle)
    for row in (rows[0], rows[17], rows[50]):
        number = row["item"] if "00.tar" in row["file"] or "01.tar" in row["file"] else 80 + row["item"]
        expected = predictor.predict(colored(number))
        assert row["label"] == expected.label and tuple(row["scores"].values()) == expected.scores


def test_folders_files_and_lists_are_predicted_in_the_order_of_their_names(colors_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(20):
        (folder / f"{index:02d}.png").write_bytes(colored(index))
    (tmp_path / "list.txt").write_text(f"{folder}/05.png\n{tmp_path}/gone.png\n")
    task = replace(task_of(colors_bundle, folder, tmp_path / "out"), inputs=(str(tmp_path / "list.txt"), str(folder)))
    report = score(task)
    rows = rows_of(tmp_path / "out/part-0-of-1.jsonl")
    assert [Path(row["file"]).name for row in rows] == ["gone.png", *(f"{index:02d}.png" for index in range(20))]
    assert "No such file" in rows[0]["error"] and "item" not in rows[1]
    assert report.counts.image_bytes == sum(len(colored(index)) for index in range(20))


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("count", [2, 5])
def test_any_number_of_shards_gives_the_same_merged_file(
    colors_bundle: Path, shards: Path, tmp_path: Path, format_: str, count: int
) -> None:
    if format_ == "parquet":
        pytest.importorskip("pyarrow")
    task = task_of(colors_bundle, shards / "{00..02}.tar", tmp_path / "one", format=format_, scores=True)
    score_part(task)
    all_parts(replace(task, out=tmp_path / "many"), count)
    one, many = merge(tmp_path / "one"), merge(tmp_path / "many", tmp_path / f"merged.{format_}")
    assert Path(one.path).read_bytes() == (tmp_path / f"merged.{format_}").read_bytes()
    assert one.counts.images == many.counts.images == 104 and one.counts.left_out == many.counts.left_out


def test_csv_and_parquet_have_a_column_for_each_score(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    for format_ in ("jsonl", "csv", "parquet"):
        score_part(task_of(colors_bundle, shards / "01.tar", tmp_path / format_, format=format_, scores=True))
    lines = rows_of(tmp_path / "jsonl/part-0-of-1.jsonl")
    with (tmp_path / "csv/part-0-of-1.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "parquet/part-0-of-1.parquet").to_pylist()
    columns = ["file", "item", "key", "label", "score", "score:red", "score:green", "score:blue", "error"]
    assert list(cells[0]) == list(table[0]) == columns
    for line, cell, row in zip(lines, cells, table, strict=True):
        assert (cell["key"], cell["label"], cell["error"]) == (line["key"], line.get("label", ""), line.get("error", ""))
        assert (row["item"], row["label"], row["error"]) == (line["item"], line.get("label"), line.get("error"))
        if "error" not in line:
            assert float(cell["score:red"]) == row["score:red"] == line["scores"]["red"]


def test_a_finished_part_is_skipped_and_its_record_has_the_counts(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    task = task_of(colors_bundle, shards / "00.tar", tmp_path)
    first = score_part(task)
    before = (tmp_path / "part-0-of-1.jsonl").stat().st_mtime_ns
    again = score_part(task)
    assert (first.skipped, again.skipped) == (False, True) and first.record == again.record
    assert (tmp_path / "part-0-of-1.jsonl").stat().st_mtime_ns == before
    record = PartRecord.model_validate_json((tmp_path / "part-0-of-1.done").read_bytes())
    assert record.job.variant == "onnx-fp32" and record.threads == 2 and record.counts.seconds > 0
    assert record.output_bytes == (tmp_path / "part-0-of-1.jsonl").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-0-of-1.done", "part-0-of-1.jsonl"]


def test_a_part_of_another_bundle_input_or_option_is_refused(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    task = task_of(colors_bundle, shards / "00.tar", tmp_path / "out")
    score_part(task)
    other = write_bundle(tmp_path / "other", 2)
    with pytest.raises(ConfigError, match=r"part-0-of-1\.done belongs to another job: manifest_sha256 is \w{64} there and \w{64} here"):
        score_part(replace(task, model=ScoringModel(bundle=other)))
    with pytest.raises(ConfigError, match="input_sha256 is"):
        score_part(replace(task, inputs=(str(shards / "01.tar"),)))
    with pytest.raises(ConfigError, match="scores is False there and True here"):
        score_part(replace(task, config=ScoringConfig(scores=True)))
    score_part(replace(task, out=tmp_path / "two", shard=Shard(0, 2)))
    with pytest.raises(ConfigError, match=r"part-0-of-2\.done belongs to another job: scores is False there"):
        score_part(replace(task, out=tmp_path / "two", shard=Shard(1, 2), config=ScoringConfig(scores=True)))
    with pytest.raises(ConfigError, match="has part 0 of 1, but this is part 1 of 2"):
        score_part(replace(task, shard=Shard(1, 2)))
    (tmp_path / "out/part-0-of-1.done").unlink()
    _interrupt(task, blocks=1)
    with pytest.raises(ConfigError, match=r"part-0-of-1\.progress belongs to another job"):
        score_part(replace(task, config=ScoringConfig(scores=True)))


def test_a_second_process_on_the_same_part_is_refused(
    colors_bundle: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "_LOCK_WAIT_S", 0.0)
    task = task_of(colors_bundle, shards / "00.tar", tmp_path)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, locked(PartFiles(tmp_path, ONE).place) as held:
        assert held
        with pytest.raises(ConfigError, match="another process writes"):
            pool.submit(score_part, task).result()


class _StoppedError(Exception):
    """Stand-in for the end of the process."""


def _interrupt(task: PartTask, *, blocks: int) -> None:
    """Score a part, and stop after some blocks, each with a checkpoint."""
    written = 0

    def stop(stage: str, done: int, total: int) -> None:
        nonlocal written
        written += 1
        if written == blocks:
            raise _StoppedError

    before = part.CHECKPOINT_S
    part.CHECKPOINT_S = 0.0
    try:
        with pytest.raises(_StoppedError):
            score_part(task, stop)
    finally:
        part.CHECKPOINT_S = before


@pytest.mark.parametrize("garbage", [b"", b'{"file": "half a li', b"\0" * 5000])
def test_an_interrupted_part_continues_after_the_last_saved_block(
    colors_bundle: Path, shards: Path, tmp_path: Path, garbage: bytes
) -> None:
    task = task_of(colors_bundle, shards / "{00..02}.tar", tmp_path / "one")
    score_part(task)
    stopped = replace(task, out=tmp_path / "two")
    for blocks in (1, 2, 3):
        _interrupt(stopped, blocks=blocks)
        with (tmp_path / "two/part-0-of-1.rows").open("ab") as file:
            file.write(garbage)
    state = PartProgress.model_validate_json((tmp_path / "two/part-0-of-1.progress").read_bytes())
    assert (state.unit, state.block) == (2, 0) or state.counts.rows == 6 * 16 - 2 * 8
    result = score_part(stopped)
    name = "part-0-of-1.jsonl"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (result.record.counts.images, result.record.counts.left_out) == (104, {".cls": 65})


def test_a_part_that_lost_saved_rows_is_refused(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    task = task_of(colors_bundle, shards / "00.tar", tmp_path)
    _interrupt(task, blocks=2)
    (tmp_path / "part-0-of-1.rows").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"is shorter than .*progress states. Delete both"):
        score_part(task)


def test_a_part_whose_output_was_written_but_not_recorded_is_finished(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    task = task_of(colors_bundle, shards / "00.tar", tmp_path)
    _interrupt(task, blocks=3)  # all blocks
    (tmp_path / "part-0-of-1.jsonl").write_bytes(b"an earlier attempt")
    assert score_part(task).record.counts.images == 40
    assert len(rows_of(tmp_path / "part-0-of-1.jsonl")) == 40


def test_a_full_disk_is_an_error_that_keeps_the_part(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4k") as disk:
        task = task_of(colors_bundle, shards / "00.tar", disk)
        with pytest.raises(StorageError, match="cannot write"):
            score_part(task)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a file that cannot be read")
def test_a_shard_that_the_storage_does_not_deliver_leaves_its_part_unfinished(colors_bundle: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", shards=1, images=20)
    os.mkfifo(tmp_path / "in/01.tar")
    task = task_of(colors_bundle, tmp_path / "in/{00..01}.tar", tmp_path / "out")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"cannot read .*01\.tar: not a regular file\. Repeat the command"):
            score_part(task)
        assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".progress", ".rows"]


def test_an_image_that_the_storage_does_not_deliver_is_no_row(colors_bundle: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.png"
    path.write_bytes(colored(1))
    predictor = load_predictor(open_bundle(colors_bundle), ScoringModel(bundle=colors_bundle))
    (block,) = ShardInput(find_sources([str(path)]), ONE).blocks()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with path.open() as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno(), limits[1]))
        try:
            with pytest.raises(StorageError, match=r"cannot read .*a\.png: Too many open files\. Repeat the command"):
                score_block(predictor, block, scores=False)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "label" in score_block(predictor, block, scores=False).rows[0]


def test_long_paths_are_merged_from_csv(colors_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("x" * 200_000 + ".png")
    score_part(task_of(colors_bundle, tmp_path / "list.txt", tmp_path / "out", format="csv"))
    assert merge(tmp_path / "out").counts.errors == 1


def test_the_merge_lists_missing_parts_and_finds_changed_files(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no parts"):
        merge(tmp_path)
    task = task_of(colors_bundle, shards / "{00..01}.tar", tmp_path / "out")
    for index in (0, 2):
        score_part(replace(task, shard=Shard(index, 4)))
    with pytest.raises(ConfigError, match=r"2 of 4 parts are not finished: 1, 3\. Run edgetl predict with --shard I/4 for each"):
        merge(tmp_path / "out")
    for index in (1, 3):
        score_part(replace(task, shard=Shard(index, 4)))
    with pytest.raises(ConfigError, match=r"Choose a name that ends in \.jsonl"):
        merge(tmp_path / "out", tmp_path / "all.csv")
    with pytest.raises(ConfigError, match="is a part"):
        merge(tmp_path / "out", tmp_path / "out/part-0-of-4.jsonl")
    assert merge(tmp_path / "out").counts.images == 79
    file = tmp_path / "out/part-1-of-4.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"part-1-of-4\.jsonl differs from its \.done file"):
        merge(tmp_path / "out")
    file.unlink()
    with pytest.raises(DataError, match=r"part-1-of-4\.jsonl: No such file"):
        merge(tmp_path / "out")
    file.write_bytes(whole)
    record = PartRecord.model_validate_json((tmp_path / "out/part-3-of-4.done").read_bytes())
    changed = record.model_copy(update={"job": record.job.model_copy(update={"manifest_sha256": "0" * 64})})
    (tmp_path / "out/part-3-of-4.done").write_text(changed.model_dump_json())
    with pytest.raises(ConfigError, match=r"part-3-of-4\.done belongs to another job: manifest_sha256"):
        merge(tmp_path / "out")
    shutil.copy(tmp_path / "out/part-0-of-4.done", tmp_path / "out/part-0-of-2.done")
    with pytest.raises(ConfigError, match="parts of several jobs: with 2, 4 shards"):
        merge(tmp_path / "out")


def test_the_merge_needs_as_many_rows_as_the_records_state(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    score_part(task_of(colors_bundle, shards / "00.tar", tmp_path))
    place = tmp_path / "part-0-of-1.done"
    record = PartRecord.model_validate_json(place.read_bytes())
    place.write_text(record.model_copy(update={"counts": record.counts.model_copy(update={"images": 41})}).model_dump_json())
    with pytest.raises(DataError, match=r"has 40 rows, but the \.done files state 41"):
        merge(tmp_path)
    assert not (tmp_path / "predictions.jsonl").exists()


def test_blocks_are_read_only_as_fast_as_they_are_predicted(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    predictor = load_predictor(open_bundle(colors_bundle), ScoringModel(bundle=colors_bundle))
    blocks = list(ShardInput(find_sources([str(shards / "00.tar")]), ONE).blocks())
    read = 0

    def counted() -> Any:
        nonlocal read
        for _ in range(100):
            read += 1
            yield blocks[0]

    scorer = _Scorer(predictor, 2, scores=False)
    results = scorer.score(counted())
    for done, _ in enumerate(islice(results, 20), start=1):
        assert read <= done + 2 * 2
    results.close()  # type: ignore[attr-defined]


def test_parquet_without_its_library_names_the_extra(
    colors_bundle: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetl.data.inputs import parquet_files

    monkeypatch.setattr(parquet_files, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pyarrow is not installed"):
        list(parquet_files.read_parquet(tmp_path / "a.parquet", lambda number: True))
    with pytest.raises(MissingExtraError, match="pyarrow is not installed"):  # before any prediction
        score_part(task_of(colors_bundle, shards / "00.tar", tmp_path / "out", format="parquet"))
    assert not (tmp_path / "out").exists()


def test_the_command_predicts_in_processes_and_merges(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    done = command("predict", colors_bundle, shards / "{00..02}.tar", "--out", tmp_path / "out", "--processes", 2, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 5 and report["counts"]["images"] == 104 and len(report["parts"]) == 2
    again = command("predict", colors_bundle, shards / "{00..02}.tar", "--out", tmp_path / "out", "--processes", 2)
    assert again.stdout.count("(finished earlier)") == 2 and "edgetl merge" in again.stdout and again.returncode == 5
    merged = command("merge", tmp_path / "out")
    assert merged.returncode == 5 and "104 predictions and 2 errors written to" in merged.stdout
    score_part(task_of(colors_bundle, shards / "{00..02}.tar", tmp_path / "one"))
    assert (tmp_path / "out/predictions.jsonl").read_bytes() == (tmp_path / "one/part-0-of-1.jsonl").read_bytes()


def test_options_that_exclude_each_other_are_errors(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    for options, phrase in (
        (("--shard", "0/2"), "--shard needs --out DIR"),
        (("--format", "csv"), "--format needs --out DIR"),
        (("--out", tmp_path / "o", "--shard", "2/2"), "--shard 2/2 is not I/N"),
        (("--out", tmp_path / "o", "--shard", "0/2", "--processes", 2), "Give one of them"),
        (("--out", tmp_path / "o", "--heat-maps", tmp_path / "m"), "--heat-maps cannot be combined with --out"),
        (("--out", tmp_path / "o", "--top", 5), "--top cannot be combined with --out"),
    ):
        done = command("predict", colors_bundle, shards / "00.tar", *options)
        assert done.returncode == 3 and phrase in " ".join(done.stderr.split())
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills_do_not_change_the_merged_output(colors_bundle: Path, tmp_path: Path, processes: int) -> None:
    import random

    write_shards(tmp_path / "shards", shards=8, images=3000)
    arguments = ("predict", colors_bundle, tmp_path / "shards/{00..07}.tar", "--processes", processes, "--out")
    assert command(*arguments, tmp_path / "one").returncode == 0
    rng, kills = random.Random(processes), 0
    while kills < 20:
        running = Command(*arguments, tmp_path / "two")
        time.sleep(rng.uniform(0.5, 4.0))
        if not running.is_running():
            running.wait()
            shutil.rmtree(tmp_path / "two")
            continue
        running.signal(signal.SIGKILL)
        assert running.wait().returncode != 0
        kills += 1
    assert command(*arguments, tmp_path / "two").returncode == 0
    merged = [Path(merge(tmp_path / name).path).read_bytes() for name in ("one", "two")]
    assert merged[0] == merged[1]


def test_a_plan_multiplies_the_measured_coefficients(colors_bundle: Path, shards: Path, tmp_path: Path) -> None:
    score_part(task_of(colors_bundle, shards / "00.tar", tmp_path))
    place = tmp_path / "part-0-of-1.done"
    record = PartRecord.model_validate_json(place.read_bytes())
    counts = Counts(images=40, image_bytes=400_000, seconds=0.1)
    place.write_text(record.model_copy(update={"counts": counts, "output_bytes": 4000}).model_dump_json())
    plan = plan_scoring(tmp_path, images=1_000_000_000, cores=1000)
    assert (plan.images_per_s_per_core, plan.image_bytes, plan.row_bytes) == pytest.approx((200, 10_000, 100))  # two threads
    assert plan.hours == pytest.approx(1e9 / 200 / 1000 / 3600) and plan.input_mb_per_s == pytest.approx(2000)
    assert (plan.files, plan.images_per_file) == (10_000, 100_000) and plan.output_gb == pytest.approx(100)
    with pytest.raises(ConfigError, match="has no finished part with predictions"):
        plan_scoring(tmp_path / "gone", images=1, cores=1)
    done = command("plan", "predict", "--images", "1e9", "--cores", 1000, "--measured", tmp_path)
    assert done.returncode == 0 and "200 images/s per core, on 40 images" in done.stdout
    assert "Measure at least 1,000 images." in done.stdout
    missing = command("plan", "predict", "--images", "1e9", "--cores", 1000)
    assert missing.returncode == 3 and "edgetl plan predict --images 1e+09 --cores 1000 --measured DIR." in missing.stderr
