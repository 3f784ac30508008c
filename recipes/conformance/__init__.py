"""A conformance test of trainers: a tiny exact world, trainers of any framework, and a diagnosis of each."""
