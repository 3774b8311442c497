"""Modules that the evidence scripts share. tests/show/README.md describes them."""
