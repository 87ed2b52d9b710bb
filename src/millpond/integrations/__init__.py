"""Millpond in others' own terms: Chroma's and LanceDB's, and what the adapters have in common.

Each module is imported for itself, which is when its project is imported. Those of the vector
stores register there what they have. All calls go to `Engine.shared`, so objects for the same model
and options load it once. Adapters that are distributions of their own are under `integrations/` of
the repository; they stand on `engine_fields`.
"""
