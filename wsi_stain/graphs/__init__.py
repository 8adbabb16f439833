"""ONNX graphs of other people's networks: what is admitted, how tile statistics are frozen, how they run.

Only this room imports onnx and onnxruntime, which the extra `[onnx]` installs.
"""
