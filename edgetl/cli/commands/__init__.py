"""Commands of the command line: one function per command, grouped by topic."""
