"""Continual learning: previous task, replay, LwF, EWC, L2-SP, progressive networks, and distillation teacher."""
