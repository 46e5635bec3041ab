"""Training of ATP modules: needs torch and transformers (the ``train`` extra)."""
