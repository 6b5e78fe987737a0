"""Gallery of a served k-NN bundle: it is loaded while the server runs, and named in the responses."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from edgetl.device.gallery.changes import add, remove_all
from edgetl.device.gallery.place import open_place
from edgetl.errors import GalleryError
from edgetl.runtime.gallery.file import gallery_path, read_gallery
from edgetl.serve.workers.bundles import end_starts, find_bundles
from tests.device.bundles import add_release, image, write_knn_bundle
from tests.serve.serving import serving, until

YELLOW = image((230, 220, 20))


def _add(bundle: Path, work: Path) -> None:
    files = []
    for index in range(4):
        files.append(work / f"yellow-{index}.png")
        files[-1].write_bytes(image((230 - index, 220, 20)))
    add(open_place(bundle), files, "yellow")


def test_a_changed_gallery_is_loaded_and_named_in_the_responses(tmp_path: Path) -> None:
    bundle = write_knn_bundle(tmp_path / "bundle")
    with serving(bundle, options=["--watch"]) as served, httpx.Client(base_url=served.url) as client:
        plain = client.post("/predict", content=YELLOW).json()
        assert plain["label"] != "yellow" and "gallery" not in plain
        _add(bundle, tmp_path)
        until(lambda: client.get("/models").json()["models"][0]["gallery"] is not None)
        digest = read_gallery(gallery_path(bundle)).sha256
        (card,) = client.get("/models").json()["models"]
        assert card["gallery"] == {"sha256": digest, "images": 4, "new_labels": ["yellow"]} and card["labels"][-1] == "yellow"
        found = client.post("/predict", content=YELLOW).json()
        assert (found["label"], found["gallery"]) == ("yellow", digest) and set(found["scores"]) == {"red", "green", "blue", "yellow"}
        raw = client.post("/v2/models/colors/infer", content=YELLOW, headers={"Inference-Header-Content-Length": "0"})
        assert digest.encode() in raw.content
        metadata = client.get("/v2/models/colors").json()
        assert metadata["outputs"][0]["shape"] == [-1, 4] and metadata["parameters"]["gallery"] == digest
        gallery_path(bundle).write_bytes(b"damaged")
        until(lambda: served.metric('edgetl_reload_total{result="refused"') > 0)
        assert client.post("/predict", content=YELLOW).json()["gallery"] == digest
        remove_all(open_place(bundle))
        until(lambda: client.get("/models").json()["models"][0]["gallery"] is None)
        assert "Traceback" not in served.log()


def test_bundles_are_served_with_their_galleries_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    bundle = write_knn_bundle(tmp_path / "bundle")
    add_release(tmp_path / "store", bundle)
    _add(bundle, tmp_path)
    _add(tmp_path / "store", tmp_path)
    served = find_bundles([bundle, tmp_path / "store"], None)
    end_starts(served)
    assert [item.gallery is not None for item in served] == [True, True]
    gallery_path(bundle).write_bytes(b"damaged")
    with pytest.raises(GalleryError, match="The gallery is damaged"):
        find_bundles([bundle], None)
