from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from scipy.stats import weightedtau

from edgetl.errors import ConfigError, DataError
from edgetl.train.config.options import TrainConfig
from edgetl.train.config.ranking import RankConfig, Ranking
from edgetl.train.config.weights_dir import EMBEDDED_BACKBONE
from edgetl.train.workflows.rank import rank
from edgetl.train.workflows.train import train
from tests.command import edgetl
from tests.conftest import write_colors


@pytest.fixture(scope="module")
def weights_dir(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights directory with two ImageNet networks, and a JSON file with the preprocessing of the second."""
    root = tmp_path_factory.mktemp("weights_dir")
    (root / "mobilenetv2_100.imagenet").symlink_to(shared / "weights/mobilenetv2_100.imagenet")
    shutil.copy(shared / "weights/squeezenet1_0.dc_in1k.safetensors", root)
    facts = {
        "input_size": [3, 227, 227],
        "mean": [123 / 255, 117 / 255, 104 / 255],
        "std": [1 / 255] * 3,
        "license": "bsd-2-clause",
    }
    (root / "squeezenet1_0.dc_in1k.json").write_text(json.dumps(facts))
    return root


def test_rank_orders_candidates_and_reports_reasons_for_those_left_out(digits: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    safetensors.torch.save_file(timm.create_model("test_byobnet").state_dict(), tmp_path / "test_byobnet.safetensors")
    config = RankConfig(
        candidates=(EMBEDDED_BACKBONE, f"random:{EMBEDDED_BACKBONE}", "test_byobnet", "no_such_net", "resnet18.fb_swsl_ig1b_ft_in1k"),
        weights_dir=str(tmp_path),
        images=120,
        license_policy="commercial",
    )
    ranking = rank(digits, config)
    assert {item.name for item in ranking.ranked} == {EMBEDDED_BACKBONE, f"random:{EMBEDDED_BACKBONE}"}
    reasons = {item.name: item.reason for item in ranking.left_out}
    assert "without a stated license" in reasons["test_byobnet"] and "timm has no backbone" in reasons["no_such_net"]
    assert len(reasons) == 3 and ranking.images == 120 and ranking.classes == 10
    first = ranking.ranked[0]
    assert first.name == EMBEDDED_BACKBONE and first.place == 1 and first.latency_ms > 0 and first.stage == "native"
    assert first.license == "apache-2.0" and ranking.ranked[1].license is None


def test_rank_rejects_candidates_above_the_limits_and_too_few_images(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no candidate is left to rank \(edgetl_small: .* above the limit of 0.1\)"):
        rank(digits, RankConfig(candidates=(EMBEDDED_BACKBONE,), max_params_m=0.1, images=30))
    with pytest.raises(ConfigError, match="ms per image, above the limit of"):
        rank(digits, RankConfig(candidates=(EMBEDDED_BACKBONE,), max_latency_ms=1e-6, images=30))
    write_colors(tmp_path / "few", 3)
    with pytest.raises(DataError, match="At least 20 images of two classes"):
        rank(tmp_path / "few", RankConfig(candidates=(EMBEDDED_BACKBONE,)))


def test_tied_candidates_share_a_place(digits: Path) -> None:
    ranking = rank(digits, RankConfig(images=60).model_copy(update={"candidates": (EMBEDDED_BACKBONE, EMBEDDED_BACKBONE)}))
    assert [item.place for item in ranking.ranked] == [1, 1]


@pytest.mark.slow
def test_rank_command_prints_a_table_and_writes_a_plot(digits: Path, tmp_path: Path) -> None:
    names = f"{EMBEDDED_BACKBONE},random:{EMBEDDED_BACKBONE}"
    done = edgetl("rank", digits, "--candidates", names, "--images", 60, "--plot", tmp_path / "rank.png")
    assert done.returncode == 0, done.stderr
    assert f"next: edgetl train {digits} --out RUN --backbone {EMBEDDED_BACKBONE}" in done.stdout.replace("\n", " ")
    assert (tmp_path / "rank.png").read_bytes().startswith(b"\x89PNG")
    as_json = edgetl("rank", digits, "--candidates", names, "--images", 60, "--confirm", 1, "--json")
    assert as_json.returncode == 0, as_json.stderr
    ranking = Ranking.model_validate_json(as_json.stdout)
    assert ranking.ranked[0].stage == "confirmed" and ranking.ranked[0].confirmed is not None
    wrong = edgetl("rank", digits, "--images", 3, "--confirm", -1)
    assert wrong.returncode == 3 and "--images" in wrong.stderr and "--confirm" in wrong.stderr


@pytest.mark.slow
@pytest.mark.shared
def test_ranking_of_pretrained_weights_agrees_with_full_probes(shared: Path, weights_dir: Path, tmp_path: Path) -> None:
    names = ("mobilenetv2_100", "torchvision:squeezenet1_0", EMBEDDED_BACKBONE, f"random:{EMBEDDED_BACKBONE}")
    ranking = rank(shared / "data/trashnet", RankConfig(candidates=names, weights_dir=str(weights_dir), images=300))
    assert ranking.ranked[-1].name.startswith("random:") and len(ranking.ranked) == 4
    accuracies = {}
    for name in names:
        config = TrainConfig.from_options(
            backbone=name.removeprefix("random:"),
            pretrained=not name.startswith("random:"),
            weights_dir=str(weights_dir),
            augmented_views=1,
            strategy="probe",
        )
        run = train(shared / "data/trashnet", config, tmp_path / name.replace(":", "-"))
        assert run.record.test is not None
        accuracies[name] = run.record.test.accuracy.value
    order = [-index for index in range(4)]
    tau = weightedtau(order, [accuracies[item.name] for item in ranking.ranked]).statistic
    assert tau >= 0.5, accuracies
