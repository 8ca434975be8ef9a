"""Any decoder-only transformers model on torch. Nothing else imports torch."""
