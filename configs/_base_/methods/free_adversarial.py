# FastGAN (arXiv 2008.03364): what a config in configs/gan/ has already.
model = dict(epsilon=0.006, replays=2)
