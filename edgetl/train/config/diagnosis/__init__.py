"""Options and results of the commands that diagnose a transfer: ``edgetl diagnose``, ``distance`` and ``curve``. No torch."""
