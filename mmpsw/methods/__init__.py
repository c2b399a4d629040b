"""The techniques in plain PyTorch; nothing here imports OpenMMLab."""
