"""Sources of weights: catalogue, weight files, embedded backbones, timm, torchvision and hubs, lineage."""
