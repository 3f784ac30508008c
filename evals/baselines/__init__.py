"""Models to be compared with: back-off n-grams, bags of words, length alone."""
