"""What is written for the inference box: the ONNX graph, bundles, and ultralytics checkpoints."""
