"""Image formats by file signature (magic number)."""

from __future__ import annotations

import struct

# Number of bytes at the start of a file that ``image_format`` needs.
HEADER_BYTES = 132
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xffO\xffQ", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\n", "JPEG XL"),
    (b"8BPS", "PSD"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"\x93NUMPY", "NumPy"),
    (b"%PDF-", "PDF"),
    (b"SIMPLE  =", "FITS"),
)


def image_format(header: bytes) -> str | None:
    """Detect the image format by the first ``HEADER_BYTES`` bytes of a file, or none.

    Supported formats have the names of ``edgetl.core.images.decode.FORMATS``.
    """
    for start, name in _STARTS:
        if header.startswith(start):
            return name
    if header[:4] == b"RIFF" and header[8:12] == b"WEBP":
        return "WebP"
    if header[4:8] == b"ftyp":
        brand = header[8:12]
        return "AVIF" if brand in (b"avif", b"avis") else "HEIC" if brand in _HEIF_BRANDS else None
    if header[:2] == b"BM" and len(header) >= 18 and struct.unpack("<I", header[14:18])[0] in _BMP_HEADERS:
        return "BMP"
    return "DICOM" if header[128:132] == b"DICM" else None
