"""System: host, CPU quota, load, memory, child interpreters."""
