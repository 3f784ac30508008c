"""How several methods train: what they share, so that a method's file holds the method alone."""
