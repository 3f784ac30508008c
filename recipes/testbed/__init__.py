"""The exact testbed's stages, plans and summaries."""
