"""The model on every backend of Keras: layers, encoder, heads, pre-training."""
