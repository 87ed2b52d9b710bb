"""Reading files of texts and writing files of vectors, for `millpond embed`."""
