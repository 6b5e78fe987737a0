"""Options of signatures: trusted keys for a check, and the private key for signing. Options of a gallery."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from edgetl.core.config import StrictModel
from edgetl.core.options import option_field

_signature = partial(option_field, panel="Signature")


class TrustConfig(StrictModel):
    """Options of commands that check signatures.

    Attributes:
        key: public key file. Only this key is trusted.
        trust: folder with public keys and a revocation list. Ignored if ``key`` is given.
        require_signature: a missing ``key`` and ``trust`` is an error.
    """

    key: Path | None = _signature(None, "Public key (.pub). The bundle must have a valid signature of this key. Overrides --trust.")
    trust: Path | None = _signature(
        None, "Folder of trusted public keys (*.pub), optionally with revoked.txt. The bundle must have a valid signature of one of them."
    )
    require_signature: bool = _signature(False, "Fail if neither --key nor --trust is given, instead of checking no signature.")


class SigningConfig(StrictModel):
    """Options of commands that sign a bundle.

    Attributes:
        sign_key: private key file. None does not sign.
        passphrase_file: file with the passphrase of the private key.
    """

    sign_key: Path | None = _signature(None, "Private key that signs the bundle. The model card shows its fingerprint.")
    passphrase_file: Path | None = _signature(None, "File with the passphrase of the private key. Default: EDGETL_PASSPHRASE, or a prompt.")


class GalleryConfig(StrictModel):
    """Options of ``edgetl gallery``.

    Attributes:
        label: class of the images to add, or to remove.
        all: delete the gallery.
        overwrite: replace a gallery with other images.
        variant: variant that computes the features.
        sign_key: private key file. None does not sign.
        passphrase_file: file with the passphrase of the private key.
    """

    label: str | None = option_field(
        None, "add: class of the images, known or new. remove: remove all images of this class.", metavar="NAME"
    )
    all: bool = option_field(False, "remove: delete the gallery, also if it is damaged.")
    overwrite: bool = option_field(False, "install: replace a gallery with images that the file does not have, or a damaged gallery.")
    variant: str | None = option_field(None, "add: variant that computes the features. Default: the variant that runs.", metavar="NAME")
    sign_key: Path | None = _signature(None, "add, remove: private key that signs the gallery.")
    passphrase_file: Path | None = _signature(None, "File with the passphrase of the private key. Default: EDGETL_PASSPHRASE, or a prompt.")
