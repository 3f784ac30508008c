"""Methods on real preference rows."""
