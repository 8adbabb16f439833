"""The networks: generator, encoders, discriminator, and their form for inference.

Outside nn/, train/ and evaluate/, only doctor/ and cluster/local.py import torch.
"""
