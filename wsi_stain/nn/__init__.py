"""The networks: generator, encoders, discriminator, and their form for inference.

Only this folder, train/ and eval/ know torch.
"""
