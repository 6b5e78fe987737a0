"""Store of a device: install, confirm, roll back and remove releases. ``edgetl.core.store`` reads a store."""
