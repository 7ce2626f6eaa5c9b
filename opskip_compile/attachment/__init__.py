"""What `compile` puts on a model: hooks that find the visual rows, and a compiled forward of its decoder."""
