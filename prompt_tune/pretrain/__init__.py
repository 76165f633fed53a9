"""How `tiny` was made: a text tower fitted to structured targets, then a YOLO-World trained on drawn scenes."""
