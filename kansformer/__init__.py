"""Training, prediction and inspection of Vision KANsformers."""
