"""The made family `tiny-vision`: pictures that installed packages ship, and a small ViT trained on them."""
