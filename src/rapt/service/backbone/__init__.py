"""The frozen language model: loading it, its layers and their sites, and what is put into its forward pass."""
