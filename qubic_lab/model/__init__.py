"""What a model is and costs: its configuration, its files, its decoder, its division into stages."""
