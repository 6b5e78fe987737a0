"""Images: decoding, intensity rules, file signatures and format limits."""
