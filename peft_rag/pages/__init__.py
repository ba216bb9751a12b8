"""Pages: HTML files that need nothing else, made of elements that no text can break out of."""
