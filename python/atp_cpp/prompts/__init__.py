"""Questions and conversations as the model's chat template has them."""
