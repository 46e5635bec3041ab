"""Files of the Hugging Face hub. Everything but names imports huggingface_hub."""
