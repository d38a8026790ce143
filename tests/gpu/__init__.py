"""Tests on a GPU. They need neither Ray nor the other tests' packages: ``python benchmarks/gpu.py`` runs them."""
