"""edgetl on a device: load a bundle, predict.

>>> import edgetl
>>> predictor = edgetl.load("bundle")               # doctest: +SKIP
>>> predictor.predict("photo.jpg").label            # doctest: +SKIP
'glass'

Training (``edgetl.train``) and export (``edgetl.export``) need their extras and are not imported here.
"""

from edgetl.core.bundle import Bundle, open_bundle
from edgetl.core.results import Prediction
from edgetl.errors import EdgetlError
from edgetl.runtime.predictor import Predictor, load

__all__ = ["Bundle", "EdgetlError", "Prediction", "Predictor", "load", "open_bundle"]
