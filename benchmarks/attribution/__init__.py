"""Attribution held against planted mechanisms."""
