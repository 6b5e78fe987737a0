"""Commands on keys and signatures: ``edgetl keygen`` and ``sign``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from edgetl.cli.session import JsonOption, OverwriteOption, VerboseOption, out, print_json, working
from edgetl.cli.tables import facts_grid
from edgetl.core.config import read_bytes
from edgetl.errors import ConfigError

if TYPE_CHECKING:
    from edgetl.device.config import SigningConfig
    from edgetl.device.keys import PrivateKey

PASSPHRASE = "EDGETL_PASSPHRASE"
PassphraseOption = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="File with the passphrase of the private key. Default: EDGETL_PASSPHRASE, or a prompt."),
]


def keygen_command(
    out_: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Private key to write, such as release.key.")],
    passphrase_file: PassphraseOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Generate an Ed25519 key pair to sign bundles.

    The public key is written beside the private key, with the suffix .pub. Without a passphrase, only the permissions of the file protect
    the private key.
    """
    with working(json_output=json_output, verbose=verbose):
        from edgetl.device.keys import generate_key, public_path

        passphrase = _given_passphrase(passphrase_file) or _new_passphrase()
        key = generate_key(out_, passphrase=passphrase)
    paths = {"private_key": str(out_), "public_key": str(public_path(out_))}
    if json_output:
        print_json({**paths, "encrypted": bool(passphrase), "key_id": key.key_id, "fingerprint": key.fingerprint})
        return
    facts = facts_grid()
    facts.add_row("private key", escape(f"{out_} ({'encrypted' if passphrase else 'not encrypted'}; keep it secret)"))
    facts.add_row("public key", escape(paths["public_key"]))
    facts.add_row("key ID", key.key_id)
    facts.add_row("fingerprint", key.fingerprint)
    out.print(facts)
    out.print(f"next: edgetl sign BUNDLE --key {escape(str(out_))}", soft_wrap=True)


def sign_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle: the folder that `edgetl export` wrote.")],
    key: Annotated[Path, typer.Option(metavar="PATH", help="Private key that `edgetl keygen` wrote.")],
    format_: Annotated[
        Literal["edgetl", "minisign"], typer.Option("--format", help="Signature format. minisign: the minisign tool can verify it, too.")
    ] = "edgetl",
    passphrase_file: PassphraseOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Sign a bundle: write manifest.sig beside its manifest.

    All files are compared with the manifest first. The manifest lists the hash of each file, so its signature covers the whole bundle.
    """
    with working(json_output=json_output, verbose=False):
        from edgetl.device.keys import public_path
        from edgetl.device.signature import describe_signature, sign_bundle

        private = signing_key(key, passphrase_file)
        signed = sign_bundle(bundle, private, format_=format_, overwrite=overwrite)
    if json_output:
        print_json({"bundle": str(bundle), "signature": describe_signature(signed, private.public).model_dump(mode="json")})
        return
    out.print(f"{escape(str(bundle))} signed by the key {escape(private.name)} ({private.public.key_id})", soft_wrap=True)
    out.print(f"next: edgetl verify {escape(str(bundle))} --key {escape(str(public_path(key)))}", soft_wrap=True)


def optional_key(config: SigningConfig) -> PrivateKey | None:
    """Return the private key of the options; none without ``--sign-key``. Errors as ``signing_key``."""
    return signing_key(config.sign_key, config.passphrase_file) if config.sign_key else None


def signing_key(path: Path, passphrase_file: Path | None) -> PrivateKey:
    """Read a private key. If it is encrypted, its passphrase comes from the file, the environment or a prompt.

    Raises:
        ConfigError: the key cannot be read, or there is no passphrase.
    """
    from edgetl.device.keys import is_encrypted, read_private_key

    if not is_encrypted(path):
        return read_private_key(path)
    passphrase = _given_passphrase(passphrase_file)
    if passphrase is None and sys.stdin.isatty():
        passphrase = typer.prompt(f"Passphrase of {path}", hide_input=True, err=True).encode()
    if passphrase is None:
        raise ConfigError(f"{path} is encrypted. Give its passphrase with --passphrase-file, or in {PASSPHRASE}.")
    return read_private_key(path, passphrase=passphrase)


def _given_passphrase(file: Path | None) -> bytes | None:
    """Return the passphrase of the file or of the environment; none without both. The end of the first line ends it."""
    if file is not None:
        text = read_bytes(file, ConfigError).partition(b"\n")[0].rstrip(b"\r")
        if not text:
            raise ConfigError(f"{file} is empty. Write the passphrase in its first line.")
        return text
    return os.environ.get(PASSPHRASE, "").encode() or None


def _new_passphrase() -> bytes | None:
    """Prompt for a new passphrase on a terminal; none without a terminal, or if it is empty."""
    if not sys.stdin.isatty():
        return None
    text = typer.prompt(
        "Passphrase, or nothing for an unencrypted key", default="", show_default=False, hide_input=True, confirmation_prompt=True, err=True
    )
    return text.encode() or None
