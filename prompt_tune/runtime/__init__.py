"""The inference box: detection with NumPy and ONNX Runtime, without torch."""
