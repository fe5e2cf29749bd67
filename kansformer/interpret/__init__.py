"""Looking inside a trained vision model, and making it smaller."""
