"""Session of a command: logging and warnings are restored at its end."""

from __future__ import annotations

import logging
import warnings

import pytest

from edgetl.cli.session import working


@pytest.mark.parametrize("verbose", [False, True])
def test_a_command_restores_loggers_and_warning_filters(verbose: bool) -> None:
    loggers = [logging.getLogger(name) for name in ("root", "edgetl", "nncf", "lightning_fabric")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    filters = list(warnings.filters)
    with pytest.raises(ValueError, match="stop"), working(json_output=True, verbose=verbose):
        assert logging.getLogger().level == (logging.INFO if verbose else logging.ERROR)
        raise ValueError("stop")
    assert [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers] == before
    assert list(warnings.filters) == filters
