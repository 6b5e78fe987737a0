"""Device API of edgetl: load a bundle and predict labels for images.

>>> import edgetl
>>> predictor = edgetl.load("bundle")               # doctest: +SKIP
>>> predictor.predict("photo.jpg").label            # doctest: +SKIP
'glass'

This package needs NumPy, Pillow, pydantic and one inference engine. Training (``edgetl.train``) and export (``edgetl.export``) need
the extras ``train`` and ``export``. They are not imported here.
"""

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.results import Prediction
from edgetl.errors import EdgetlError
from edgetl.runtime.predictor import Predictor, load

__all__ = ["Bundle", "EdgetlError", "Prediction", "Predictor", "load", "open_bundle"]
