"""Images: decoding, intensity rules, signatures and limits of formats."""
