"""Millpond in vector stores' own terms: Chroma and LanceDB, a module for each.

Each is imported for itself, which is when its project is imported, and registers there what it has.
All calls go to `Engine.shared`, so objects for the same model and options load it once. Adapters
that are distributions of their own are under `integrations/` of the repository.
"""
