"""The backend that ``torch.compile`` calls: settings, rewriting, the hand-off between graphs, lowering."""
