"""Commands on keys and signatures: ``keygen``, ``sign``, ``pack``, and signatures in ``verify``, ``inspect`` and ``export``."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetl.cli.app import main
from edgetl.core.bundle import Bundle
from edgetl.core.manifest import MANIFEST_NAME, SIGNATURE_NAME
from edgetl.device.keys import PrivateKey, load_public_key, read_private_key
from edgetl.device.signature import REVOKED_NAME, open_trust, sign_bundle, verified_bundle
from edgetl.device.transport import pack
from edgetl.train.artifacts.run import Run
from tests.command import Printed
from tests.core.bundles import flip


class Commands:
    """Commands of this process, with captured output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Printed:
        """Run one command."""
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = self._capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Printed(code, printed.out, printed.err)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    """Runs commands in this process. The signal handlers and variables that they set are restored."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Commands(capsys)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_key_signs_packs_and_verifies_a_bundle(bundle: Bundle, tmp_path: Path, command: Commands) -> None:
    copy, key = shutil.copytree(bundle.path, tmp_path / "bundle"), tmp_path / "release.key"
    made = command("keygen", "--out", key)
    signed = command("sign", copy, "--key", key)
    packed = command("pack", copy, "--out", tmp_path / "a.edgetl")
    verified = command("verify", tmp_path / "a.edgetl", "--key", tmp_path / "release.pub")
    inspected = command("inspect", tmp_path / "a.edgetl", "--json")
    public = load_public_key(tmp_path / "release.pub")
    assert f"fingerprint  {public.fingerprint}" in made.stdout
    assert f"{copy} signed by the key release ({public.key_id})\nnext: edgetl verify {copy} --key {tmp_path}/release.pub" in signed.stdout
    assert f"signed by the key {public.key_id}" in packed.stdout
    assert f"signature: valid, by the key release ({public.key_id}), fingerprint {public.fingerprint}" in verified.stdout
    assert "19 files match the hashes of the manifest" in verified.stdout
    shown = json.loads(inspected.stdout)
    assert shown["name"] == "digits"
    assert shown["signature"] == {"state": "unchecked", "format": "edgetl", "key_id": public.key_id, "key": None, "fingerprint": None}


def test_json_of_the_commands_has_the_key(folder: Path, tmp_path: Path, command: Commands) -> None:
    key = tmp_path / "release.key"
    made = command("keygen", "--out", key, "--json")
    signed = command("sign", folder, "--key", key, "--json", "--format", "minisign")
    packed = command("pack", folder, "--out", tmp_path / "a.edgetl", "--json")
    public = load_public_key(tmp_path / "release.pub")
    assert json.loads(made.stdout) == {
        "private_key": str(key),
        "public_key": str(tmp_path / "release.pub"),
        "encrypted": False,
        "key_id": public.key_id,
        "fingerprint": public.fingerprint,
    }
    state = {"state": "valid", "format": "minisign", "key_id": public.key_id, "key": "release", "fingerprint": public.fingerprint}
    assert json.loads(signed.stdout) == {"bundle": str(folder), "signature": state}
    unchecked = {**state, "state": "unchecked", "key": None, "fingerprint": None}
    size = (tmp_path / "a.edgetl").stat().st_size
    assert json.loads(packed.stdout) == {
        "bundle": str(folder),
        "file": str(tmp_path / "a.edgetl"),
        "size_bytes": size,
        "signature": unchecked,
    }


def test_verify_has_an_exit_code_for_each_kind_of_signature(
    folder: Path, keys: Path, key: PrivateKey, tmp_path: Path, command: Commands
) -> None:
    trust = tmp_path / "trust"
    trust.mkdir()
    for name in ("release", "other"):
        shutil.copy(keys / f"{name}.pub", trust)
    other = read_private_key(keys / "other.key")
    (trust / REVOKED_NAME).write_text(other.public.fingerprint)
    bundles = {name: shutil.copytree(folder, tmp_path / name) for name in ("unsigned", "signed", "revoked", "unknown", "corrupt")}
    for name, signer in (("signed", key), ("revoked", other), ("unknown", other), ("corrupt", key)):
        sign_bundle(bundles[name], signer)
    flip(bundles["corrupt"] / "golden/0.png")
    packed = tmp_path / "signed.edgetl"
    pack(bundles["signed"], packed)
    (bundles["signed"] / MANIFEST_NAME).write_bytes((bundles["signed"] / MANIFEST_NAME).read_bytes().replace(b"cat", b"rat"))
    damaged = tmp_path / "damaged.edgetl"
    damaged.write_bytes(packed.read_bytes()[:-1])
    unsigned = tmp_path / "unsigned.edgetl"
    pack(bundles["unsigned"], unsigned)
    cases: list[tuple[Path, list[object], int, str]] = [
        (bundles["unsigned"], ["--trust", trust], 21, "UnsignedError"),
        (bundles["signed"], ["--trust", trust], 20, "SignatureError"),
        (bundles["revoked"], ["--trust", trust], 23, "RevokedKeyError"),
        (bundles["unknown"], ["--key", keys / "release.pub", "--trust", trust], 22, "UnknownKeyError"),
        (bundles["corrupt"], ["--trust", trust], 9, "IntegrityError"),
        (damaged, ["--trust", trust], 9, "IntegrityError"),
        (unsigned, ["--trust", trust], 21, "UnsignedError"),
        (bundles["signed"], ["--require-signature"], 3, "ConfigError"),
        (bundles["signed"], ["--key", keys / "nothing.pub"], 3, "ConfigError"),
    ]
    for path, options, code, name in cases:
        printed = command("verify", path, *options, "--json")
        assert (printed.code, json.loads(printed.stdout)["error"]["class"]) == (code, name), (path, printed.stderr)


def test_the_environment_sets_the_trusted_keys(folder: Path, keys: Path, command: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_TRUST", str(keys))
    done = command("verify", folder, "--require-signature")
    assert done.code == 21 and "has no signature (manifest.sig), but a key is required" in done.words


def test_an_encrypted_key_takes_its_passphrase_from_a_file_or_the_environment(
    folder: Path, tmp_path: Path, command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = tmp_path / "a.key", tmp_path / "secret.txt"
    secret.write_bytes(b"correct horse\r\n")
    sign = ("sign", folder, "--key", key, "--overwrite")
    made = command("keygen", "--out", key, "--passphrase-file", secret)
    assert made.code == 0 and "(encrypted; keep it secret)" in " ".join(made.stdout.split())
    missing = command(*sign)
    assert missing.code == 3 and "a.key is encrypted. Give its passphrase with --passphrase-file, or in EDGETL_PASSPHRASE." in missing.words
    assert command(*sign, "--passphrase-file", secret).code == 0
    monkeypatch.setenv("EDGETL_PASSPHRASE", "correct horse")
    assert command(*sign).code == 0
    monkeypatch.setenv("EDGETL_PASSPHRASE", "wrong")
    wrong = command(*sign)
    assert wrong.code == 3 and "a.key cannot be decrypted. Check the passphrase." in wrong.words
    secret.write_bytes(b"\nx")
    empty = command(*sign, "--passphrase-file", secret)
    assert empty.code == 3 and "secret.txt is empty. Write the passphrase in its first line." in empty.words


def on_a_terminal(typed: list[str], *arguments: object) -> tuple[int, str]:
    """Run a command whose standard input is a terminal, and answer each prompt. Return the exit code and the words of the output."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "edgetl.cli.app", *map(str, arguments)]
    output = ""
    with subprocess.Popen(
        command, stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=0, start_new_session=True
    ) as process:
        assert process.stdout is not None
        while character := process.stdout.read(1):
            output += character
            if output.endswith(("key: ", "confirmation: ")):  # getpass discards earlier input
                if not typed:
                    process.kill()
                    break
                os.write(leader, f"{typed.pop(0)}\n".encode())
    os.close(leader)
    os.close(follower)
    return process.returncode, " ".join(output.split())


def test_a_passphrase_can_be_typed(folder: Path, tmp_path: Path) -> None:
    code, output = on_a_terminal(["horse", "horse"], "keygen", "--out", tmp_path / "a.key")
    assert code == 0 and "horse" not in output and "(encrypted; keep it secret)" in output, output
    assert on_a_terminal(["horse"], "sign", folder, "--key", tmp_path / "a.key")[0] == 0
    assert verified_bundle(folder, open_trust(tmp_path))[1] == load_public_key(tmp_path / "a.pub")
    code, output = on_a_terminal(["", ""], "keygen", "--out", tmp_path / "b.key")
    assert code == 0 and "(not encrypted; keep it secret)" in output, output


def test_a_transport_file_given_as_a_bundle_is_an_error_with_the_command(signed: Path, tmp_path: Path, command: Commands) -> None:
    pack(signed, tmp_path / "a.edgetl")
    done = command("predict", tmp_path / "a.edgetl", "x.jpg")
    assert done.code == 8 and "a.edgetl is a transport file, not a bundle folder. Unpack it: unzip" in done.words


def test_export_signs_the_bundle_and_the_card_shows_the_fingerprint(
    run: Run, keys: Path, key: PrivateKey, tmp_path: Path, command: Commands
) -> None:
    out = tmp_path / "bundle"
    done = command("export", run.path, "--out", out, "--format", "onnx", "--precision", "fp32", "--sign-key", keys / "release.key")
    assert done.code == 0, done.stderr
    assert verified_bundle(out, open_trust(keys))[1] == key.public
    assert f"- Signed by the key with the fingerprint (SHA-256) {key.public.fingerprint}\n" in (out / "card.md").read_text("utf-8")


def test_an_export_with_a_missing_key_writes_nothing(run: Run, tmp_path: Path, command: Commands) -> None:
    done = command("export", run.path, "--out", tmp_path / "bundle", "--sign-key", tmp_path / "no.key")
    assert done.code == 3 and "no.key: No such file" in done.words
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", [SIGNATURE_NAME, MANIFEST_NAME])
def test_inspect_of_a_damaged_file_is_an_error(signed: Path, name: str, command: Commands) -> None:
    (signed / name).write_bytes(b"x")
    done = command("inspect", signed)
    assert done.code == (20 if name == SIGNATURE_NAME else 8) and name in done.words
