"""The networks: B-splines, KAN layers and the Vision Transformer (torch and timm.layers only)."""
