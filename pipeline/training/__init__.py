"""Records to samples to a trained model."""
