"""The networks: generator, encoders, discriminator, and their form for inference.

Outside nn/, train/ and evaluate/, only cli/doctor.py and cluster/local.py import torch.
"""
