"""System: host, CPU quota, host load, memory, child interpreters."""
