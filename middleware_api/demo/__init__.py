"""A miniature Stable Diffusion 1.x, the pictures it learns from, and the scripts that train it."""
