"""Models and labels for the Hugging Face hub: folders with cards, and sending them."""
