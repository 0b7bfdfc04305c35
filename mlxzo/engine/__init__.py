"""Everything that computes on a loaded model: batches, scores, generation, methods, the training loop."""
