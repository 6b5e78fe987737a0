"""Examples at the end of each command's help page: a purpose, and a command line of at most 76 characters."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "check": (
        ("Check a folder, and write a page with galleries", "edgetl check photos --html check.html"),
        ("Write a cleaned list, and train on it", "edgetl check photos --keep keep.csv"),
    ),
    "diagnose": (
        ("Check by linear probes whether pretraining helps", "edgetl diagnose photos"),
        ("Check it by training, and measure forgetting", "edgetl diagnose photos --fine-tune --source old_photos"),
    ),
    "distance": (
        ("Compare two folders of images", "edgetl distance photos new_photos"),
        ("Compare new images with those of a run", "edgetl distance run new_photos"),
    ),
    "curve": (
        ("Measure and extrapolate the accuracy over the labels", "edgetl curve photos --plot curve.png"),
        ("Train a network for each point", "edgetl curve photos --fine-tune"),
    ),
    "label": (
        ("Choose the first 50 images to label", "edgetl label photos --out labels.csv"),
        ("Choose 50 more, with the labels so far", "edgetl label photos --labels labels.csv --out more.csv"),
    ),
    "cluster": (
        ("Find 20 groups of similar images, and show them", "edgetl cluster photos --out groups.csv --html groups.html"),
        ("Find 40 groups, which are purer", "edgetl cluster photos --out groups.csv --clusters 40"),
    ),
    "train": (
        ("Fine-tune the default backbone on a folder with one folder per class", "edgetl train photos --out run"),
        ("Fine-tune every layer of a timm backbone", "edgetl train photos --out run --backbone resnet18.a1_in1k --strategy full"),
    ),
    "plan": (
        ("Estimate time and memory of each strategy", "edgetl plan photos"),
        ("Estimate them for another backbone", "edgetl plan photos --backbone mobilenetv3_small_100"),
    ),
    "adapt": (
        ("Adapt a run to unlabeled images of another camera", "edgetl adapt run new_photos --out adapted"),
        ("Choose the result by a few labeled images", "edgetl adapt run new_photos --out adapted --target-labels labeled"),
    ),
    "update": (
        ("Update a run with new images", "edgetl update run new_photos --out run2"),
        ("Update it with captured images of a device", "edgetl update run captured/photos --out run2"),
    ),
    "rank": (
        ("Compare the backbones that need no download", "edgetl rank photos"),
        ("Compare two, and fine-tune the best one briefly", "edgetl rank photos --candidates edgetl_small,resnet18 --confirm 1"),
    ),
    "models": (
        ("List backbones with at most 5 million parameters", "edgetl models --max-params 5"),
        ("Show the details of one backbone", "edgetl models mobilenetv3_small_100"),
    ),
    "calibrate": (
        ("Calibrate the scores of a run", "edgetl calibrate run"),
        ("Also reject unknown images, for a precision of 95 %", "edgetl calibrate run --target-precision 0.95"),
    ),
    "prune": (
        ("Remove 30 % of the channels", "edgetl prune run --out pruned --ratio 0.3"),
        ("Recover the accuracy with the original run as teacher", "edgetl train photos --out tuned --backbone pruned --teacher run"),
    ),
    "export": (
        ("Export ONNX and OpenVINO files in fp32 and int8", "edgetl export run --out bundle"),
        ("Export only variants that need at most 5 ms per image", "edgetl export run --out bundle --max-latency-ms 5"),
    ),
    "fit": (
        ("Find a backbone that needs at most 5 ms per image", "edgetl fit photos --out fitted --max-latency-ms 5"),
        ("Find one within 4 MB, with at most two trainings", "edgetl fit photos --out fitted --max-size-mb 4 --tries 2"),
    ),
    "share": (
        ("Write a run as a Hugging Face folder", "edgetl share run --out hub"),
        ("Replace the folder of an earlier call", "edgetl share run --out hub --overwrite"),
    ),
    "predict": (
        ("Predict the images of a folder with the fastest variant", "edgetl predict bundle photos/cat"),
        ("Predict tar shards in two processes, and write files", "edgetl predict bundle 'shards/{00..63}.tar' --out out --processes 2"),
    ),
    "plan predict": (
        ("Measure some images", "edgetl predict bundle images --out out"),
        ("Estimate a job of a billion images on 1000 cores", "edgetl plan predict --images 1e9 --cores 1000 --measured out"),
    ),
    "merge": (
        ("Merge the parts of `edgetl predict --out`", "edgetl merge out"),
        ("Choose the file to write", "edgetl merge out --out predictions.jsonl"),
    ),
    "evaluate": (
        ("Evaluate a bundle on new labeled images", "edgetl evaluate bundle new_photos"),
        ("Evaluate the trained model of a run", "edgetl evaluate run new_photos"),
    ),
    "verify": (
        ("Check the files and predictions of a bundle on this host", "edgetl verify bundle"),
        ("Check its signature first", "edgetl verify bundle.edgetl --key release.pub"),
    ),
    "inspect": (
        ("Show the variants, labels and lineage of a bundle", "edgetl inspect bundle"),
        ("Print the record of a run as JSON", "edgetl inspect run --json"),
    ),
    "bench": (
        ("Measure every variant on this host", "edgetl bench bundle"),
        ("Compare two variants on one thread", "edgetl bench bundle --variant onnx-int8 --against onnx-fp32 --threads 1"),
    ),
    "report": (
        ("Write an HTML page about a run and its bundle", "edgetl report run bundle --out report.html"),
        ("Compare two runs", "edgetl report run other_run --out comparison.html"),
    ),
    "serve": (
        ("Serve a bundle on http://127.0.0.1:8000", "edgetl serve bundle"),
        ("Serve two bundles with two worker processes", "edgetl serve bundle other_bundle --processes 2 --port 9000"),
    ),
    "keygen": (
        ("Generate a key pair: release.key and release.pub", "edgetl keygen --out release.key"),
        ("Encrypt the private key", "edgetl keygen --out release.key --passphrase-file secret.txt"),
    ),
    "sign": (
        ("Sign a bundle", "edgetl sign bundle --key release.key"),
        ("Replace its signature by one that minisign verifies", "edgetl sign bundle --key new.key --format minisign --overwrite"),
    ),
    "pack": (
        ("Write a bundle as one file", "edgetl pack bundle --out pets.edgetl"),
        ("Write labeled images as shards for training", "edgetl pack photos --out shards"),
    ),
    "install": (
        ("Install a transport file, signed by a trusted key", "edgetl install pets.edgetl --store store --trust keys"),
        ("Download and install a release", "edgetl install https://updates.example.com/pets.edgetl"),
    ),
    "status": (
        ("Show the active release of a store", "edgetl status --store store"),
        ("Print the status as JSON", "edgetl status --store store --json"),
    ),
    "confirm": (
        ("Confirm the active release", "edgetl confirm --store store"),
        ("Confirm the release of the default store", "edgetl confirm"),
    ),
    "rollback": (
        ("Return to the previous release", "edgetl rollback --store store"),
        ("Print the status afterwards as JSON", "edgetl rollback --store store --json"),
    ),
    "gc": (
        ("Remove unused releases", "edgetl gc --store store"),
        ("Remove all releases but the active one", "edgetl gc --store store --keep 1"),
    ),
    "tune": (
        ("Choose the fastest variant and setting on this host", "edgetl tune bundle --out tuning.json"),
        ("Choose for images of this device", "edgetl tune bundle --images photos --out tuning.json"),
    ),
    "gallery": (
        ("Add images of a new class without training", "edgetl gallery add bundle bottles --label bottle"),
        ("Install a signed gallery on a device", "edgetl gallery install store bundle.gallery.json --trust keys"),
    ),
    "run": (
        ("Predict each new file of a folder", "edgetl run bundle --source incoming --follow --processed delete"),
        ("Publish the records of a camera over MQTT", "edgetl run bundle --source 0 --sink mqtt://broker/line1"),
    ),
    "demo": (
        ("Run every step on handwritten digits", "edgetl demo"),
        ("Write the results to another folder", "edgetl demo --out digits_demo"),
    ),
    "distill": (
        ("Train the embedded backbone on unlabeled images", "edgetl distill images --teacher mobilenetv2_100 --out distilled"),
        ("Use the result", "edgetl train photos --backbone local-dir:distilled --out run"),
    ),
    "pretrain": (
        ("Continue the pretraining on unlabeled images", "edgetl pretrain --ssl images --backbone edgetl_small --out pretrained"),
        ("Reproduce the embedded backbone", "edgetl pretrain models/edgetl_small.toml --out pretrained"),
    ),
}


def epilog(command: str) -> str:
    """Return the end of the help page of ``command``. Blank lines keep typer's own help page from joining the lines."""
    lines = [line for purpose, example in EXAMPLES[command] for line in (f"  {purpose}:", f"    {example}")]
    return "\n\n".join(["Examples:", *lines])
