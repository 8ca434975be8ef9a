"""Any decoder-only transformers model on torch. No other package imports torch."""
