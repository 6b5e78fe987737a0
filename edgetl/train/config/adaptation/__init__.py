"""Options and result of ``edgetl adapt``. No torch."""
