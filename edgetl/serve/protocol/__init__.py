"""Open Inference Protocol v2, request bodies, OpenAPI document."""
