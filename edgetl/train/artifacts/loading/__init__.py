"""Loading of weights: model catalogue, weight files, embedded backbones, timm, torchvision, hubs, and lineage."""
