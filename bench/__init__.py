"""Benchmarks: every figure of the README and the documentation is printed by a module of this package, with its host.

``suites`` (``make bench``) measures the time of each part with pytest-benchmark. ``growth`` plots how times grow with size. ``comparisons``
measures two ways of doing the same in turn. ``accuracy``, ``device`` and ``server`` answer other questions. ``zoo`` exports timm's
architectures. ``peers`` measures other tools.
"""
