"""Worker pool: worker processes, IPC messages, batching."""
