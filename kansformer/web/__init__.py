"""A trained model as a page in the browser, and as a small JSON service beside it."""
