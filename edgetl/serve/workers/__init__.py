"""Worker pool: processes, IPC messages, batching."""
