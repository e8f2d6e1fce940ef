"""Hydra YAML groups, one file per choice, and their typed schema (schema.py)."""
