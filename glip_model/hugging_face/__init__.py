"""The detector as transformers and the Hugging Face hub know models: config, processor, model, code in a folder."""
