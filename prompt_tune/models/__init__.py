"""The frozen YOLO-World, the frozen CLIP text tower, and the learned prompts."""
