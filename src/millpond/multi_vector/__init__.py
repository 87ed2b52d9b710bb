"""A vector for each token of a text, and what is made of them. Imports no torch."""
