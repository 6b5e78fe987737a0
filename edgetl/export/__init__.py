"""Export: a trained run becomes a bundle of verified, quantized and packaged files."""
