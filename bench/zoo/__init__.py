"""Export sweep over the small architectures of timm (``python -m bench.zoo``)."""
