"""Rerankers, sparse and multi-vector models beside the libraries that run them."""
