"""What computes logits: the interface, the choice of a runner for a model, and the runners."""
