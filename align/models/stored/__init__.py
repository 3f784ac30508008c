"""Checkpoints as they lie on disk: adapters on a base, `.gguf` files, the number type that they are held in."""
