"""A web page to try a trained model, and a small JSON service."""
