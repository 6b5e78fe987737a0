"""Files: atomic writing, safe opening, names as text, differences between platforms."""
