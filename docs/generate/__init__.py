"""Writers of the generated pages of docs/: `make docs` runs them all."""
