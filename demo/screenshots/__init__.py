"""`make screenshots`: the pictures of the documentation, taken in a real browser from real servers."""
