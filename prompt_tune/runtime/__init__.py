"""The inference box: NumPy and ONNX Runtime, no torch."""
